#include "bench/net_load.hpp"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "bench/bare_switch.hpp"
#include "bench/frame.hpp"
#include "bench/net_ends.hpp"
#include "bench/one_way_load.hpp"

namespace millrace::bench {

using base::fail;
using base::Result;

namespace {

constexpr std::size_t macs_size = 12;
constexpr std::uint32_t addresses_max = 1u << 20;
constexpr std::size_t pairs_max = 2048;
using Pieces = std::span<const std::span<const std::byte>>;

// Bytes 2 to 4 are those that set_address() varies.
FrameShape::Mac mac_of(std::size_t pair, std::uint8_t end) {
  return {0x02, static_cast<std::uint8_t>((pair >> 8) << 4 | end),
          0,    0,
          0,    static_cast<std::uint8_t>(pair)};
}

// Two NICs, of which one sends and the other receives.
template <class Driver>
class Pair {
 public:
  Pair(const NetLoadConfig& config, std::size_t number, std::unique_ptr<SocketGuest> from,
       std::unique_ptr<SocketGuest> to)
      : from_{std::move(from)},
        to_{std::move(to)},
        shape_{mac_of(number, 0x0a), mac_of(number, 0x0b), config.frame, config.tso},
        back_{mac_of(number, 0x0b), mac_of(number, 0x0a), FrameShape::least, false},
        sender_{*from_, shape_, buffers_of(config)},
        receiver_{*to_},
        back_sender_{*to_, back_, buffers_of(config)},
        back_receiver_{*from_},
        addresses_{config.addresses} {
    sender_.vary_destination(addresses_);
    back_sender_.vary_source(addresses_);
  }

  // Frames both ways until each end has one, and the switch has seen all addresses of the receiver:
  // from then on it floods nothing. Then one frame for each of the receiver's buffers, so that the
  // load finds memory that has been used, as a guest's is.
  Result<void> meet(const std::string& names);
  unsigned send(unsigned count) { return sender_.send(count); }
  template <class Each>
  unsigned receive(Each each) {
    const auto received = receiver_.receive(each);
    if (received > 0) receiver_.refill();
    take_in_back();
    return received;
  }
  [[nodiscard]] const FrameShape& shape() const { return shape_; }
  [[nodiscard]] std::uint64_t kicks() const { return sender_.kicks(); }
  [[nodiscard]] bool broken() const { return sender_.broken() || receiver_.broken(); }

 private:
  unsigned take_in_back() {
    const auto count = back_receiver_.receive([](auto) {});
    if (count > 0) back_receiver_.refill();
    return count;
  }

  std::unique_ptr<SocketGuest> from_, to_;
  const FrameShape shape_, back_;
  Sender<Driver> sender_;
  Receiver<Driver> receiver_;
  Sender<Driver> back_sender_;  // so that the switch knows where the receiver is
  Receiver<Driver> back_receiver_;
  const std::uint32_t addresses_;
};

template <class Driver>
Result<void> Pair<Driver>::meet(const std::string& names) {
  constexpr unsigned together = 32;
  const auto deadline = base::cycles() + base::ns_to_cycles(patience_ns);
  bool there = false, back = false;
  std::uint64_t next = 0, taught = 0, used = 0;
  while (!there || !back || taught < addresses_ || used < receiver_.places()) {
    const auto now = base::cycles();
    if (now > deadline) {
      return fail("no frame comes from " + names + ": are both on the same switch?");
    }
    if (now > next) {  // not too many: a switch floods these
      if (!there || !back) sender_.send(1);
      if (there && back) used += sender_.send(together);
      taught += back_sender_.send(back ? together : 1);
      next = now + base::ns_to_cycles(back ? 20'000 : 10'000'000);
    }
    there = receiver_.receive([](auto) {}) > 0 || there;
    receiver_.refill();
    back = take_in_back() > 0 || back;
  }
  return {};
}

template <class Driver>
class LoadOn final : public NetLoad {
 public:
  using Pairs = std::vector<std::unique_ptr<Pair<Driver>>>;
  LoadOn(const NetLoadConfig& config, Pairs pairs,
         std::vector<std::unique_ptr<Receiver<Driver>>> idle,
         std::vector<std::unique_ptr<SocketGuest>> guests)
      : config_{config},
        idle_guests_{std::move(guests)},
        idle_{std::move(idle)},
        pairs_{std::move(pairs)} {}

  Result<NetResult> run(const LoadTime& time) override;

 private:
  void look(const FrameShape& shape, Pieces pieces, NetResult& result,
            base::FineHistogram& latency);
  bool right(const FrameShape& shape, Pieces pieces);
  [[nodiscard]] std::uint64_t kicks() const {
    std::uint64_t sum = 0;
    for (const auto& pair : pairs_) sum += pair->kicks();
    return sum;
  }

  const NetLoadConfig config_;
  std::vector<std::unique_ptr<SocketGuest>> idle_guests_;
  std::vector<std::unique_ptr<Receiver<Driver>>> idle_;
  Pairs pairs_;
  std::vector<std::byte> whole_;
  std::uint64_t put_up_ = 0, checked_ = 0;
};

template <class Driver>
bool LoadOn<Driver>::right(const FrameShape& shape, Pieces pieces) {
  if (pieces.size() == 1 && config_.addresses == 1) return shape.matches(pieces.front());
  whole_.clear();
  for (const auto& piece : pieces) whole_.insert(whole_.end(), piece.begin(), piece.end());
  // One of many addresses: any is right, the switch would not have brought another's.
  if (config_.addresses > 1 && whole_.size() >= macs_size) {
    std::memcpy(whole_.data(), shape.bytes().data(), macs_size);
  }
  return shape.matches(whole_);
}

template <class Driver>
void LoadOn<Driver>::look(const FrameShape& shape, Pieces pieces, NetResult& result,
                          base::FineHistogram& latency) {
  ++result.operations;
  std::size_t size = 0;
  for (const auto& piece : pieces) size += piece.size();
  result.bytes += size;
  const auto& first = pieces.front();
  if (first.size() >= shape.stamp_at() + sizeof(Stamp)) {
    Stamp stamp;
    std::memcpy(&stamp, first.data() + shape.stamp_at(), sizeof stamp);
    latency.add(base::cycles_to_ns(base::cycles() - stamp.cycles));
  }
  if (config_.check_every == 0 || ++checked_ % config_.check_every != 0) return;
  result.wrong += right(shape, pieces) ? 0 : 1;
}

template <class Driver>
Result<NetResult> LoadOn<Driver>::run(const LoadTime& time) {
  NetResult result;
  base::FineHistogram latency;
  Pace pace{time};
  const auto begun = base::cycles(), kicked = kicks();
  put_up_ = 0;
  for (std::size_t turn = 0;; turn = turn + 1 < pairs_.size() ? turn + 1 : 0) {
    auto& pair = *pairs_[turn];
    const auto count = due(config_.rate, config_.burst, begun, put_up_);
    const auto sent = count > 0 ? pair.send(count) : 0;
    put_up_ += sent;
    result.sent += pace.counts() ? sent : 0;
    const auto received = pair.receive([&](Pieces pieces) {
      if (pace.counts()) look(pair.shape(), pieces, result, latency);
    });
    if (pair.broken()) return fail("the device gave back a buffer that it did not have");
    const auto state = pace.round(received, result, latency);
    if (state == Pace::State::stalled) return fail("no frame has arrived for 5 s");
    if (state == Pace::State::over) break;
  }
  result.kicks = kicks() - kicked;
  result.latency = latency.snapshot();
  return result;
}

template <class Driver>
Result<std::unique_ptr<NetLoad>> make_load(const NetLoadConfig& config) {
  std::vector<std::unique_ptr<SocketGuest>> guests;
  std::vector<std::unique_ptr<Receiver<Driver>>> idle;
  for (const auto& socket : config.idle) {
    auto guest = connect_nic(config, socket);
    if (!guest) return base::Unexpected{guest.error()};
    idle.push_back(std::make_unique<Receiver<Driver>>(**guest));
    guests.push_back(*std::move(guest));
  }
  std::vector<std::string> sockets{config.from, config.to};
  sockets.insert(sockets.end(), config.pairs.begin(), config.pairs.end());
  typename LoadOn<Driver>::Pairs pairs;
  for (std::size_t i = 0; i + 1 < sockets.size(); i += 2) {
    auto from = connect_nic(config, sockets[i]);
    if (!from) return base::Unexpected{from.error()};
    auto to = connect_nic(config, sockets[i + 1]);
    if (!to) return base::Unexpected{to.error()};
    pairs.push_back(
        std::make_unique<Pair<Driver>>(config, i / 2, *std::move(from), *std::move(to)));
    if (auto ok = pairs.back()->meet(sockets[i] + " to " + sockets[i + 1]); !ok) {
      return base::Unexpected{ok.error()};
    }
  }
  return std::unique_ptr<NetLoad>{std::make_unique<LoadOn<Driver>>(
      config, std::move(pairs), std::move(idle), std::move(guests))};
}

Result<void> check(const NetLoadConfig& config) {
  if (config.frame < FrameShape::least || config.frame > FrameShape::most) {
    return fail("a frame has " + std::to_string(FrameShape::least) + " to " +
                std::to_string(FrameShape::most) + " bytes");
  }
  if (config.to.empty() && !config.out && !config.in) {
    return fail("where do the frames go: a second socket, or --out or --in for one NIC alone");
  }
  if (!config.to.empty() && (config.out || config.in)) {
    return fail("--out and --in are for one NIC alone; leave the second socket out");
  }
  if (!config.expect.empty() && !config.in) return fail("--expect is for --in");
  if (config.pairs.size() % 2 != 0) return fail("sockets come in pairs: from, to, from, to...");
  if (config.pairs.size() / 2 >= pairs_max) {
    return fail("at most " + std::to_string(pairs_max) + " pairs of sockets");
  }
  if (config.addresses == 0 || config.addresses > addresses_max) {
    return fail("--addresses is 1 to " + std::to_string(addresses_max));
  }
  return {};
}

}  // namespace

Result<BareResult> NetLoad::bare_switch(const NetLoadConfig& config, int core,
                                        const LoadTime& time) {
  if (config.packed || config.tso) return fail("the bare switch is for split rings, without --tso");
  if (auto ok = check(config); !ok) return base::Unexpected{ok.error()};
  auto from = lone_nic(config);
  if (!from) return base::Unexpected{from.error()};
  auto to = lone_nic(config);
  if (!to) return base::Unexpected{to.error()};
  auto &source = **from, &sink = **to;
  LoadOn<SplitDriver>::Pairs pairs;
  pairs.push_back(std::make_unique<Pair<SplitDriver>>(config, 0, *std::move(from), *std::move(to)));
  LoadOn<SplitDriver> load{config, std::move(pairs), {}, {}};
  const auto moving = BareSwitch::start(source, sink, core);
  if (!moving) return base::Unexpected{moving.error()};
  auto result = load.run(time);
  if (!result) return base::Unexpected{result.error()};
  return BareResult{*std::move(result), (*moving)->busy_cycles(), (*moving)->frames()};
}

Result<std::unique_ptr<NetLoad>> NetLoad::make(const NetLoadConfig& config) {
  if (auto ok = check(config); !ok) return base::Unexpected{ok.error()};
  if (config.to.empty()) return make_one_way(config);
  return config.packed ? make_load<PackedDriver>(config) : make_load<SplitDriver>(config);
}

}  // namespace millrace::bench

#include "bench/net_load.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "bench/frame.hpp"
#include "bench/ring_driver.hpp"
#include "bench/socket_guest.hpp"
#include "virtio/features.hpp"

namespace millrace::bench {

namespace wire = virtio::wire;
namespace feature = virtio::wire::net_feature;
using base::fail;
using base::Result;

namespace {

constexpr unsigned rx_ring = 0, tx_ring = 1;
constexpr std::chrono::seconds connect_patience{5};
constexpr std::uint32_t rx_buffer = 4096;  // as stock drivers post them: a page
constexpr std::uint64_t rings_bytes = 8u << 20, page = 4096;
constexpr FrameShape::Mac sender{0x02, 0, 0, 0, 0, 0x0a}, receiver{0x02, 0, 0, 0, 0, 0x0b};
constexpr std::uint64_t tso_features =
    feature::csum | feature::guest_csum | feature::host_tso4 | feature::guest_tso4;

Result<std::unique_ptr<SocketGuest>> connect(const NetLoadConfig& config, const std::string& socket,
                                             std::uint64_t buffer) {
  GuestConfig guest;
  guest.rings = 2;
  guest.listen = config.listen;
  guest.size = config.ring;
  guest.features = feature::mrg_rxbuf | (config.tso ? tso_features : 0) |
                   (config.packed ? virtio::feature::ring_packed : 0);
  guest.memory = rings_bytes + config.ring * (buffer + page);
  auto made = SocketGuest::connect(socket, guest, connect_patience);
  if (!made) return made;
  const auto missing = guest.features & ~(*made)->features();
  if ((missing & virtio::feature::ring_packed) != 0) {
    return fail(socket + ": this back-end has no packed rings");
  }
  if ((missing & tso_features) != 0) return fail(socket + ": this back-end does not take TSO");
  if ((missing & feature::mrg_rxbuf) != 0) {
    return fail(socket + ": this back-end does not merge receive buffers");
  }
  return made;
}

// A NIC's transmit side: frames of one shape, a buffer for each place.
template <class Driver>
class Sender {
 public:
  Sender(SocketGuest& guest, const FrameShape& shape)
      : guest_{guest},
        shape_{shape},
        driver_{guest, tx_ring, 1},
        buffer_{(sizeof(wire::NetHeader) + shape.size() + 63) / 64 * 64},
        buffers_{guest.allocate(driver_.places() * buffer_, page)} {
    for (unsigned place = 0; place < driver_.places(); ++place) {
      auto* const at = guest.at(buffers_ + place * buffer_);
      std::memcpy(at, &shape.header(), sizeof(wire::NetHeader));
      std::ranges::copy(shape.bytes(), at + sizeof(wire::NetHeader));
    }
  }

  // Puts up to `count` frames up. Answers how many there was room for.
  unsigned send(unsigned count) {
    while (driver_.reap()) {
    }
    unsigned sent = 0;
    const auto now = base::cycles();
    for (; sent < count && driver_.room(); ++sent) {
      const auto at = buffers_ + driver_.next_place() * buffer_;
      const Stamp stamp{number_++, now};
      std::memcpy(guest_.at(at) + sizeof(wire::NetHeader) + shape_.stamp_at(), &stamp,
                  sizeof stamp);
      const Segment segment{at, static_cast<std::uint32_t>(sizeof(wire::NetHeader)) + shape_.size(),
                            false};
      driver_.add({&segment, 1});
    }
    if (driver_.publish()) {
      driver_.kick();
      ++kicks_;
    }
    return sent;
  }
  [[nodiscard]] std::uint64_t kicks() const { return kicks_; }
  [[nodiscard]] bool broken() const { return driver_.broken(); }

 private:
  SocketGuest& guest_;
  const FrameShape& shape_;
  Driver driver_;
  const std::uint64_t buffer_, buffers_;
  std::uint64_t number_ = 0, kicks_ = 0;
};

// A NIC's receive side: buffers of a page, frames in one or more of them.
template <class Driver>
class Receiver {
 public:
  explicit Receiver(SocketGuest& guest)
      : guest_{guest},
        driver_{guest, rx_ring, 1},
        buffers_{guest.allocate(std::uint64_t{driver_.places()} * rx_buffer, page)} {
    refill();
  }

  // Calls `each` with the pieces of every frame that came, the net header taken off.
  template <class Each>
  unsigned receive(Each each) {
    unsigned frames = 0;
    while (const auto done = driver_.reap()) {
      const auto length = std::min(done->length, rx_buffer);
      std::span<const std::byte> piece{guest_.at(buffers_ + done->id * rx_buffer), length};
      if (left_ == 0) {
        if (piece.size() < sizeof(wire::NetHeader)) continue;
        wire::NetHeader header;
        std::memcpy(&header, piece.data(), sizeof header);
        left_ = std::max<unsigned>(header.num_buffers.host(), 1);
        piece = piece.subspan(sizeof header);
        pieces_.clear();
      }
      pieces_.push_back(piece);
      if (--left_ > 0) continue;
      ++frames;
      each(std::span<const std::span<const std::byte>>{pieces_});
    }
    return frames;
  }
  void refill() {
    while (driver_.room()) {
      const Segment segment{buffers_ + driver_.next_place() * std::uint64_t{rx_buffer}, rx_buffer,
                            true};
      driver_.add({&segment, 1});
    }
    if (driver_.publish()) driver_.kick();
  }
  [[nodiscard]] bool broken() const { return driver_.broken(); }

 private:
  SocketGuest& guest_;
  Driver driver_;
  const std::uint64_t buffers_;
  unsigned left_ = 0;  // buffers of the frame that is being received
  std::vector<std::span<const std::byte>> pieces_;
};

struct Ends {
  std::unique_ptr<SocketGuest> from, to;
};

template <class Driver>
class LoadOn final : public NetLoad {
 public:
  LoadOn(const NetLoadConfig& config, Ends ends)
      : config_{config},
        ends_{std::move(ends)},
        shape_{sender, receiver, config.frame, config.tso},
        back_{receiver, sender, FrameShape::least, false},
        sender_{*ends_.from, shape_},
        receiver_{*ends_.to},
        back_sender_{*ends_.to, back_},
        back_receiver_{*ends_.from} {}

  Result<void> meet();
  Result<NetResult> run(const LoadTime& time) override;

 private:
  void look(std::span<const std::span<const std::byte>> pieces, bool counts, NetResult& result,
            base::Histogram& latency);
  unsigned due(std::uint64_t begun);
  void take_in_back() {
    if (back_receiver_.receive([](auto) {}) > 0) back_receiver_.refill();
  }

  const NetLoadConfig config_;
  Ends ends_;
  const FrameShape shape_, back_;
  Sender<Driver> sender_;
  Receiver<Driver> receiver_;
  Sender<Driver> back_sender_;  // so that the switch knows where the receiver is
  Receiver<Driver> back_receiver_;
  std::vector<std::byte> whole_;
  std::uint64_t put_up_ = 0, checked_ = 0;
};

// Frames both ways until each end has one: from then on the switch floods nothing.
template <class Driver>
Result<void> LoadOn<Driver>::meet() {
  const auto deadline = base::cycles() + base::ns_to_cycles(patience_ns);
  bool there = false, back = false;
  std::uint64_t next = 0;
  while (!there || !back) {
    const auto now = base::cycles();
    if (now > deadline) {
      return fail("no frame comes from " + config_.from + " to " + config_.to +
                  ": are both on the same switch?");
    }
    if (now > next) {  // not too many: a switch floods these
      sender_.send(1);
      back_sender_.send(1);
      next = now + base::ns_to_cycles(10'000'000);
    }
    there = receiver_.receive([](auto) {}) > 0 || there;
    back = back_receiver_.receive([](auto) {}) > 0 || back;
    receiver_.refill();
    back_receiver_.refill();
  }
  return {};
}

template <class Driver>
void LoadOn<Driver>::look(std::span<const std::span<const std::byte>> pieces, bool counts,
                          NetResult& result, base::Histogram& latency) {
  if (!counts) return;
  ++result.operations;
  std::size_t size = 0;
  for (const auto& piece : pieces) size += piece.size();
  result.bytes += size;
  const auto& first = pieces.front();
  if (first.size() >= shape_.stamp_at() + sizeof(Stamp)) {
    Stamp stamp;
    std::memcpy(&stamp, first.data() + shape_.stamp_at(), sizeof stamp);
    latency.add(base::cycles_to_ns(base::cycles() - stamp.cycles));
  }
  if (config_.check_every == 0 || ++checked_ % config_.check_every != 0) return;
  if (pieces.size() == 1) {
    result.wrong += !shape_.matches(first);
    return;
  }
  whole_.clear();
  for (const auto& piece : pieces) whole_.insert(whole_.end(), piece.begin(), piece.end());
  result.wrong += !shape_.matches(whole_);
}

// How many frames to put up now.
template <class Driver>
unsigned LoadOn<Driver>::due(std::uint64_t begun) {
  if (config_.rate == 0) return config_.burst;
  const auto passed = static_cast<double>(base::cycles_to_ns(base::cycles() - begun)) / 1e9;
  const auto wanted = static_cast<std::uint64_t>(passed * config_.rate);
  return static_cast<unsigned>(
      std::min<std::uint64_t>(wanted - std::min(wanted, put_up_), config_.burst));
}

template <class Driver>
Result<NetResult> LoadOn<Driver>::run(const LoadTime& time) {
  NetResult result;
  base::Histogram latency;
  Pace pace{time};
  const auto begun = base::cycles(), kicks = sender_.kicks();
  put_up_ = 0;
  for (;;) {
    const auto count = due(begun);
    const auto sent = count > 0 ? sender_.send(count) : 0;
    put_up_ += sent;
    result.sent += pace.counts() ? sent : 0;
    const auto received =
        receiver_.receive([&](auto pieces) { look(pieces, pace.counts(), result, latency); });
    if (received > 0) receiver_.refill();
    take_in_back();
    if (sender_.broken() || receiver_.broken()) {
      return fail("the device gave back a buffer that it did not have");
    }
    const auto state = pace.round(received, result, latency);
    if (state == Pace::State::stalled) return fail("no frame has arrived for 5 s");
    if (state == Pace::State::over) break;
  }
  result.kicks = sender_.kicks() - kicks;
  result.latency = latency.snapshot();
  return result;
}

template <class Driver>
Result<std::unique_ptr<NetLoad>> make_load(const NetLoadConfig& config, Ends ends) {
  auto load = std::make_unique<LoadOn<Driver>>(config, std::move(ends));
  if (auto ok = load->meet(); !ok) return base::Unexpected{ok.error()};
  return std::unique_ptr<NetLoad>{std::move(load)};
}

}  // namespace

Result<std::unique_ptr<NetLoad>> NetLoad::make(const NetLoadConfig& config) {
  if (config.frame < FrameShape::least || config.frame > FrameShape::most) {
    return fail("a frame has " + std::to_string(FrameShape::least) + " to " +
                std::to_string(FrameShape::most) + " bytes");
  }
  const auto buffer = std::uint64_t{config.frame} + FrameShape::least + rx_buffer + 256;
  Ends ends;
  auto from = connect(config, config.from, buffer);
  if (!from) return base::Unexpected{from.error()};
  ends.from = *std::move(from);
  auto to = connect(config, config.to, buffer);
  if (!to) return base::Unexpected{to.error()};
  ends.to = *std::move(to);
  return config.packed ? make_load<PackedDriver>(config, std::move(ends))
                       : make_load<SplitDriver>(config, std::move(ends));
}

}  // namespace millrace::bench

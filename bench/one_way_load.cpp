#include "bench/one_way_load.hpp"

#include <utility>

#include "base/clock.hpp"
#include "bench/capture.hpp"
#include "bench/free_device.hpp"
#include "bench/net_ends.hpp"

namespace millrace::bench {

using base::fail;
using base::Result;

namespace {

constexpr FrameShape::Mac here{0x02, 0x0a, 0, 0, 0, 0}, there{0x02, 0x0b, 0, 0, 0, 0};

template <class Driver>
class OneWay final : public NetLoad {
 public:
  OneWay(const NetLoadConfig& config, std::unique_ptr<SocketGuest> guest)
      : config_{config},
        guest_{std::move(guest)},
        shape_{here, there, config.frame, config.tso},
        sender_{*guest_, shape_, buffers_of(config)},
        receiver_{*guest_} {}

  // What comes in has to be one of these; none: anything may come.
  void expect(FrameSet frames) { expected_ = std::move(frames); }

  Result<NetResult> run(const LoadTime& time) override {
    NetResult result;
    const base::FineHistogram none;  // nothing says when a frame arrived, or when it was sent
    Pace pace{time};
    if (!config_.out) sender_.send(1);  // so that a switch knows where this NIC is
    const auto begun = base::cycles();
    std::uint64_t put_up = 0;
    for (;;) {
      const auto before = sender_.taken();
      const auto sent =
          config_.out ? sender_.send(due(config_.rate, config_.burst, begun, put_up)) : 0;
      put_up += sent;
      const auto gone = static_cast<unsigned>(sender_.taken() - before);
      std::uint64_t bytes = 0;
      const auto received = receiver_.receive([&](auto pieces) {
        for (const auto& piece : pieces) bytes += piece.size();
        if (!expected_.empty() && !expected_.contains(whole_of(pieces))) ++result.wrong;
      });
      if (received > 0) receiver_.refill();
      if (sender_.broken() || receiver_.broken()) {
        return fail("the device gave back a buffer that it did not have");
      }
      const auto done = gone + (config_.in ? received : 0);
      if (pace.counts()) {
        result.sent += sent;
        result.operations += done;
        result.bytes += gone * std::uint64_t{config_.frame} + (config_.in ? bytes : 0);
      }
      const auto state = pace.round(done, result, none);
      if (state == Pace::State::stalled) {
        return fail(config_.in && !config_.out ? "no frame has arrived for 5 s" : stood_still(1));
      }
      if (state == Pace::State::over) break;
    }
    result.kicks = sender_.kicks();
    return result;
  }

 private:
  const NetLoadConfig config_;
  std::unique_ptr<SocketGuest> guest_;
  const FrameShape shape_;
  Sender<Driver> sender_;
  Receiver<Driver> receiver_;
  FrameSet expected_;
};

template <class Driver>
Result<std::unique_ptr<NetLoad>> make_on(const NetLoadConfig& config,
                                         std::unique_ptr<SocketGuest> guest) {
  auto load = std::make_unique<OneWay<Driver>>(config, std::move(guest));
  if (!config.expect.empty()) {
    auto frames = read_capture(config.expect);
    if (!frames) return base::Unexpected{frames.error()};
    load->expect(*std::move(frames));
  }
  return std::unique_ptr<NetLoad>{std::move(load)};
}

}  // namespace

Result<std::unique_ptr<NetLoad>> make_one_way(const NetLoadConfig& config) {
  auto guest = connect_nic(config, config.from);
  if (!guest) return base::Unexpected{guest.error()};
  return config.packed ? make_on<PackedDriver>(config, *std::move(guest))
                       : make_on<SplitDriver>(config, *std::move(guest));
}

Result<NetResult> NetLoad::ceiling(const NetLoadConfig& config, int core, const LoadTime& time) {
  if (config.packed || config.tso) return fail("the driver's own speed is known for split rings");
  auto guest = lone_nic(config);
  if (!guest) return base::Unexpected{guest.error()};
  auto& rings = **guest;
  OneWay<SplitDriver> load{config, *std::move(guest)};
  auto device = FreeDevice::start(rings, config.frame, core);
  if (!device) return base::Unexpected{device.error()};
  return load.run(time);
}

}  // namespace millrace::bench

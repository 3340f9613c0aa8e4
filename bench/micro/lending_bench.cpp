// An uplink's queue to a device that forgets what it is sent: payloads copied, and lent. What a
// device and its bus do is not in it. The lender is the least that one can be.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "daemon/eal.hpp"
#include "switch/ethdev_queue.hpp"
#include "switch/testing/null_nic.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using testing::NullNic;

class Lender final : public Completion {
 public:
  std::uint32_t hold(std::uint32_t token) noexcept override {
    ++held;
    return token;
  }
  void release(std::uint32_t) noexcept override { ++released; }
  std::uint64_t held = 0, released = 0;
};

// Frames of one size, one after the other in `memory` bytes, so that the caches hold them or not.
class Frames {
 public:
  Frames(std::uint32_t size, std::size_t memory, Lender& lender)
      : step_{(size + 63) / 64 * 64}, bytes_(memory, std::byte{1}) {
    for (std::uint32_t i = 0; i < burst_max; ++i) {
      auto& packet = packets_[i];
      packet.header_size =
          std::min<std::uint16_t>(static_cast<std::uint16_t>(size), Packet::header_max);
      packet.length = size;
      packet.view_count = 1;
      packet.completion = &lender;
      packet.token = i;
      pointers_[i] = &packet;
    }
  }
  std::span<const Packet* const> next() {
    for (auto& packet : packets_) {
      if (at_ + step_ > bytes_.size()) at_ = 0;
      packet.views[0] = {bytes_.data() + at_, packet.length - packet.header_size};
      at_ += step_;
    }
    return pointers_;
  }
  std::shared_ptr<const DmaRegions> reached() const {
    const auto begin = reinterpret_cast<std::uintptr_t>(bytes_.data());
    return std::make_shared<const DmaRegions>(
        std::vector<DmaRegion>{{begin, begin + bytes_.size(), begin, {}}});
  }

 private:
  const std::size_t step_;
  std::vector<std::byte> bytes_;
  std::size_t at_ = 0;
  std::array<Packet, burst_max> packets_{};
  std::array<const Packet*, burst_max> pointers_{};
};

void send_payloads(benchmark::State& state, std::uint32_t zero_copy_min) {
  if (!daemon::start_eal(128)) return state.SkipWithError("DPDK does not start");
  const auto size = static_cast<std::uint32_t>(state.range(0));
  Lender lender;
  Frames frames{size, static_cast<std::size_t>(state.range(1)) << 10, lender};
  testing::Switchboard board;
  const NullNic nic;
  const auto port = board.port({});
  // Its thread is this one.
  const auto reactor = *base::Reactor::make({});
  EthdevQueue queue{nic.queue(zero_copy_min), *reactor, board.fabric().bridge(0),
                    board.counters(port, 0), port};
  auto regions = frames.reached();
  queue.swap_regions(regions);
  queue.deliver(frames.next());  // a device that sent something is lent more
  queue.poll();
  for (auto _ : state) {
    queue.deliver(frames.next());
    queue.poll();
  }
  const auto sent = static_cast<std::uint64_t>(state.iterations()) * burst_max;
  CHECK(zero_copy_min == 0 ? lender.held == 0 : lender.held >= sent);
  CHECK(lender.held == lender.released);
  state.SetItemsProcessed(static_cast<std::int64_t>(sent));
}

void copied_to_wire(benchmark::State& state) {
  send_payloads(state, 0);
}
void lent_to_wire(benchmark::State& state) {
  send_payloads(state, 1);
}

void sizes(benchmark::internal::Benchmark* each) {
  each->ArgNames({"frame", "KiB"});
  for (const int memory : {128, 262'144}) {
    for (const int size : {256, 384, 512, 640, 768, 1024, 1514, 9014}) each->Args({size, memory});
  }
}
BENCHMARK(copied_to_wire)->Apply(sizes);
BENCHMARK(lent_to_wire)->Apply(sizes);

}  // namespace
}  // namespace millrace::vswitch

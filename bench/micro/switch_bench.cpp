// The switch: its address table, and a burst through a Bridge to a port that takes everything.
#include <benchmark/benchmark.h>

#include <chrono>
#include <vector>

#include "switch/mac_table.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using testing::Bytes;
using testing::mac;
using testing::Switchboard;

constexpr std::uint32_t quota = 1u << 20, now = 1000;

MacKey key_of(std::uint32_t number) {
  const auto address = mac(number);
  return mac_key(reinterpret_cast<const std::byte*>(address.data()), 0);
}

// Addresses that are known, `count` of them, in an order that no prefetcher guesses.
class Known {
 public:
  explicit Known(std::uint32_t count) : table_{MacTableConfig{.addresses_max = 1u << 17}} {
    for (std::uint32_t i = 0; i < count; ++i) {
      keys_.push_back(key_of(static_cast<std::uint32_t>(i * 40'503ull % count)));
      static_cast<void>(table_.learn(keys_.back(), 1, quota, now));
    }
  }
  MacTable& table() { return table_; }
  MacKey next() {
    if (next_ == keys_.size()) next_ = 0;
    return keys_[next_++];
  }

 private:
  MacTable table_;
  std::vector<MacKey> keys_;
  std::size_t next_ = 0;
};

void mac_find(benchmark::State& state) {
  Known known{static_cast<std::uint32_t>(state.range(0))};
  for (auto _ : state) {
    const auto port = known.table().find(known.next(), now);
    CHECK(port == 1);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}
BENCHMARK(mac_find)->ArgName("addresses")->Arg(1)->Arg(1024)->Arg(65536);

void mac_learn_known(benchmark::State& state) {
  Known known{static_cast<std::uint32_t>(state.range(0))};
  for (auto _ : state) {
    benchmark::DoNotOptimize(known.table().learn(known.next(), 1, quota, now));
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}
BENCHMARK(mac_learn_known)->ArgName("addresses")->Arg(1)->Arg(1024)->Arg(65536);

// Takes what it is given and keeps nothing.
class Sink final : public Port {
 public:
  void deliver(std::span<const Packet* const> packets) noexcept override {
    benchmark::DoNotOptimize(packets.data());
    taken += packets.size();
  }
  std::uint64_t taken = 0;
};

// Bursts of one size to as many addresses, on the reactor; the time is taken there.
void bridge_burst(benchmark::State& state) {
  constexpr unsigned bursts = 256;  // a command: well under a millisecond each
  const auto count = static_cast<unsigned>(state.range(0));
  Switchboard board;
  const auto from = board.port({}), to = board.port({});
  Sink sink, back;
  board.finish(
      [&](Fabric::Done done) { board.fabric().add_endpoint(to, 0, 0, &sink, std::move(done)); });
  board.finish(
      [&](Fabric::Done done) { board.fabric().add_endpoint(from, 0, 0, &back, std::move(done)); });
  board.send(to, {testing::plain_frame(mac(1), mac(2))});  // the receiver is known
  const Bytes frame = testing::plain_frame(mac(2), mac(1));
  std::vector<Packet> packets(count);
  for (auto& packet : packets) testing::describe(frame, packet);
  for (auto _ : state) {
    std::chrono::duration<double> spent{};
    board.on(0, [&] {
      const auto begun = std::chrono::steady_clock::now();
      for (unsigned i = 0; i < bursts; ++i) board.fabric().bridge(0).forward(from, packets);
      spent = std::chrono::steady_clock::now() - begun;
    });
    state.SetIterationTime(spent.count());
  }
  CHECK(sink.taken == static_cast<std::uint64_t>(state.iterations()) * bursts * count);
  state.SetItemsProcessed(static_cast<std::int64_t>(sink.taken));
}
BENCHMARK(bridge_burst)->ArgName("burst")->Arg(1)->Arg(32)->Arg(64)->UseManualTime();

}  // namespace
}  // namespace millrace::vswitch

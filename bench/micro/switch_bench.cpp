// The switch: its address table, and a burst through a Bridge to a port that takes everything.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
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

// Bursts of one size, on the reactor; the time is taken there. `stations`: how many receivers they
// are for, in no order, all behind one port; 0: one that nobody knows.
void bridge_burst(benchmark::State& state) {
  constexpr unsigned calls = 256;  // a command: well under a millisecond
  const auto count = static_cast<unsigned>(state.range(0));
  const auto stations = static_cast<unsigned>(state.range(1));
  Switchboard board{1, FabricConfig{.addresses_max = 1u << 18}};
  PortConfig many;
  many.addresses_max = 1u << 17;
  const auto from = board.port({}), to = board.port(many);
  Sink sink, back;
  board.finish(
      [&](Fabric::Done done) { board.fabric().add_endpoint(to, 0, 0, &sink, std::move(done)); });
  board.finish(
      [&](Fabric::Done done) { board.fabric().add_endpoint(from, 0, 0, &back, std::move(done)); });
  for (unsigned i = 0; i < stations; ++i) {
    board.send(to, {testing::plain_frame(mac(1), mac(i + 2))});
  }
  std::vector<Mac> receivers;
  for (unsigned i = 0; i < std::max(1u, stations); ++i) {
    receivers.push_back(
        mac(stations == 0 ? 0xff'ffff : static_cast<unsigned>(i * 40'503ull % stations) + 2));
  }
  const Bytes frame = testing::plain_frame(mac(2), mac(1));
  std::vector<Packet> packets(count);
  for (auto& packet : packets) testing::describe(frame, packet);
  std::size_t next = 0;
  for (auto _ : state) {
    std::chrono::duration<double> spent{};
    board.on(0, [&] {
      const auto begun = std::chrono::steady_clock::now();
      for (unsigned i = 0; i < calls; ++i) {
        for (auto& packet : packets) {
          std::memcpy(packet.header.data(), receivers[next].data(), sizeof(Mac));
          if (++next == receivers.size()) next = 0;
        }
        board.fabric().bridge(0).forward(from, packets);
      }
      spent = std::chrono::steady_clock::now() - begun;
    });
    state.SetIterationTime(spent.count());
  }
  CHECK(sink.taken == static_cast<std::uint64_t>(state.iterations()) * calls * count);
  state.SetItemsProcessed(static_cast<std::int64_t>(sink.taken));
}
BENCHMARK(bridge_burst)
    ->ArgNames({"burst", "stations"})
    ->ArgsProduct({{1, 32}, {0, 1, 1024, 65536}})
    ->UseManualTime();

}  // namespace
}  // namespace millrace::vswitch

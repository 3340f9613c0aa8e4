// A burst's whole way: taken from a guest's transmit ring, switched, copied into another guest's
// receive ring, given back on both sides. The two drivers do their part while the clock stands.
#include <benchmark/benchmark.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "base/check.hpp"
#include "base/clock.hpp"
#include "base/reactor.hpp"
#include "net/rx_port.hpp"
#include "net/tx_worker.hpp"
#include "switch/testing/two_ports.hpp"
#include "virtio/testing/fake_driver.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using virtio::testing::FakeDriver;
using virtio::wire::NetHeader;
using vswitch::testing::TwoPorts;

constexpr std::uint64_t features = vf::version_1 | vf::event_idx | nf::mrg_rxbuf;
constexpr std::uint32_t ring_size = 256;
constexpr std::size_t page = 1526;  // a receive buffer of Linux's, for frames and for parts of more
constexpr std::array<vswitch::Mac, 2> stations{{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}};

// One that does not run: the bench is its thread. It is slow to make.
base::Reactor& still_reactor() {
  static const std::unique_ptr<base::Reactor> reactor = std::move(base::Reactor::make({}).value());
  return *reactor;
}

// A ring, and a buffer for each of its places.
struct Driver {
  Driver(bool packed, std::size_t buffer)
      : driver{{.size = ring_size,
                .packed = packed,
                .features = features,
                .regions = {ring_size * ((buffer + 4095) / 4096 * 4096)}}},
        size{static_cast<std::uint32_t>(buffer)} {
    for (auto& each : at) each = driver.allocate(buffer, 4096);
    driver.disarm();  // it polls
  }
  [[nodiscard]] std::unique_ptr<virtio::Queue> open(unsigned index) const {
    return std::move(virtio::Queue::open(driver.start(index)).value());
  }
  std::uint64_t next() { return at.at(turn++ % ring_size); }

  FakeDriver driver;
  const std::uint32_t size;
  std::array<std::uint64_t, ring_size> at{};
  std::size_t turn = 0;
};

struct Pipeline {
  Pipeline(bool packed, std::size_t frame, bool apart)
      : bytes{frame}, sent_apart{apart}, from{packed, sizeof(NetHeader) + frame}, to{packed, page} {
    tx.attached(reactor);
    rx.attached(reactor);
    board.connect({nullptr, &rx});
    std::vector<std::byte> whole(from.size);  // an empty net header, and a frame
    std::memcpy(&whole[sizeof(NetHeader)], stations[1].data(), 6);
    std::memcpy(&whole[sizeof(NetHeader) + 6], stations[0].data(), 6);
    whole[sizeof(NetHeader) + 12] = std::byte{0x88};
    whole[sizeof(NetHeader) + 13] = std::byte{0xb5};
    for (const auto at : from.at) from.driver.write(at, whole);
    for (std::uint32_t i = 0; i < ring_size; ++i) CHECK(to.driver.add({}, {{to.next(), to.size}}));
    static_cast<void>(to.driver.publish());
  }
  ~Pipeline() {
    tx.detached(reactor);
    rx.detached(reactor);
  }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  void send(unsigned count) {
    constexpr std::uint32_t header = sizeof(NetHeader);
    for (unsigned i = 0; i < count; ++i) {
      const auto at = from.next();
      CHECK(sent_apart ? from.driver.add({{at, header}, {at + header, from.size - header}}, {})
                       : from.driver.add({{at, from.size}}, {}));
    }
    static_cast<void>(from.driver.publish());
  }
  // What the reactor does in a round, in cycles.
  std::uint64_t round() {
    const auto begun = base::cycles();
    CHECK(tx.poll());
    reactor.calls().flush();
    return base::cycles() - begun;
  }
  // The drivers take their buffers back, and the receiver posts as many again.
  void settle() {
    while (from.driver.poll()) {
    }
    while (const auto used = to.driver.poll()) {
      arrived += used->length;
      CHECK(to.driver.add({}, {{to.next(), to.size}}));
    }
    static_cast<void>(to.driver.publish());
  }

  const std::size_t bytes;
  const bool sent_apart;
  std::uint64_t arrived = 0;
  base::Reactor& reactor = still_reactor();
  TwoPorts board{reactor, stations};
  SwitchSide sender{&board.bridge(), &board.counters(0)};
  SwitchSide receiver{&board.bridge(), &board.counters(1)};
  Driver from, to;
  TxWorker tx{from.open(1), features, TwoPorts::ids[0], {&sender, 1}};
  RxPort rx{to.open(0), features, 0, {&receiver, 1}};
};

// `apart`: the net header is sent in a piece of its own, so that every frame is walked to.
void guest_to_guest(benchmark::State& state, bool packed) {
  const auto count = static_cast<unsigned>(state.range(0));
  const auto bytes = static_cast<std::size_t>(state.range(1));
  Pipeline line{packed, bytes, state.range(2) != 0};
  std::uint64_t cycles = 0;
  for (auto _ : state) {
    line.send(count);
    const auto spent = line.round();
    cycles += spent;
    state.SetIterationTime(static_cast<double>(spent) / base::cycles_per_second());
    line.settle();
  }
  const auto sent = static_cast<std::uint64_t>(state.iterations()) * count;
  CHECK(line.board.counters(1).rx_packets.get() == sent);
  CHECK(line.arrived == sent * (sizeof(NetHeader) + bytes));
  state.SetItemsProcessed(static_cast<std::int64_t>(sent));
  state.counters["cycles_a_frame"] = static_cast<double>(cycles) / static_cast<double>(sent);
}

void guest_to_guest_split(benchmark::State& state) {
  guest_to_guest(state, false);
}
void guest_to_guest_packed(benchmark::State& state) {
  guest_to_guest(state, true);
}

void bursts(benchmark::internal::Benchmark* each) {
  each->ArgNames({"burst", "bytes", "apart"})->UseManualTime();
  for (const int apart : {0, 1}) {
    each->Args({1, 64, apart})->Args({32, 64, apart})->Args({32, 1500, apart});
    each->Args({32, 9000, apart});
  }
}
BENCHMARK(guest_to_guest_split)->Apply(bursts);
BENCHMARK(guest_to_guest_packed)->Apply(bursts);

}  // namespace
}  // namespace millrace::net

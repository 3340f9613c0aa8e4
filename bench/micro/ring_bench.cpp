// Ring operations: take, give and publish of a burst, for both formats and both layouts.
#include <benchmark/benchmark.h>

#include "base/check.hpp"
#include "base/clock.hpp"
#include "virtio/packed_ring.hpp"
#include "virtio/split_ring.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using testing::DriverConfig;
using testing::FakeDriver;
using testing::Layout;

// A burst is put up, the clock runs while the device works, the driver takes it back: only the
// device's part is timed, by the time-stamp counter.
template <class R>
void burst(benchmark::State& state, bool packed) {
  const auto layout = state.range(1) != 0 ? Layout::indirect : Layout::direct;
  const auto count = static_cast<unsigned>(state.range(0));
  FakeDriver driver{DriverConfig{.packed = packed}};
  auto ring = R::open(driver.setup(), *driver.memory(), nullptr);
  CHECK(ring.has_value());
  Chain chain;
  for (auto _ : state) {
    for (unsigned i = 0; i < count; ++i) {
      CHECK(driver.add({{FakeDriver::data_address, 64}}, {{FakeDriver::data_address + 64, 64}},
                       layout));
    }
    static_cast<void>(driver.publish());
    const auto begun = base::cycles();
    for (unsigned i = 0; i < count; ++i) {
      CHECK((*ring).take(chain) == Take::chain);
      (*ring).give(chain.ticket(), 64);
    }
    benchmark::DoNotOptimize((*ring).publish());
    const auto spent = static_cast<double>(base::cycles() - begun);
    state.SetIterationTime(spent / base::cycles_per_second());
    while (driver.poll()) {
    }
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * count);
}

void split_ring(benchmark::State& state) {
  burst<SplitRing>(state, false);
}
void packed_ring(benchmark::State& state) {
  burst<PackedRing>(state, true);
}

BENCHMARK(split_ring)
    ->ArgNames({"burst", "indirect"})
    ->ArgsProduct({{1, 32, 64}, {0, 1}})
    ->UseManualTime();
BENCHMARK(packed_ring)
    ->ArgNames({"burst", "indirect"})
    ->ArgsProduct({{1, 32, 64}, {0, 1}})
    ->UseManualTime();

}  // namespace
}  // namespace millrace::virtio

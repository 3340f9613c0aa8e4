// Translation of guest addresses, in few and many regions, and copies of the sizes that frames and
// requests have.
#include <benchmark/benchmark.h>

#include <cstring>
#include <random>
#include <vector>

#include "base/check.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using testing::DriverConfig;
using testing::FakeDriver;

constexpr std::uint64_t region_size = 1u << 20;
constexpr std::size_t places = 4096;  // addresses that are looked up in turn

// `near`: all addresses lie in one region, so that the hint is right; else anywhere.
void translate(benchmark::State& state) {
  const auto regions = static_cast<std::size_t>(state.range(0));
  const bool near = state.range(1) != 0;
  FakeDriver driver{DriverConfig{.regions = std::vector(regions, region_size)}};
  std::mt19937_64 random{regions};
  std::vector<std::uint64_t> addresses(places);
  for (auto& address : addresses) {
    const auto span = near ? region_size : regions * region_size;
    address = FakeDriver::data_address + random() % (span / 4096) * 4096;
  }
  const auto memory = driver.memory();
  GuestMemory::Hint hint;
  std::size_t next = 0;
  for (auto _ : state) {
    const auto found = memory->translate(addresses[next++ % places], 64, hint);
    CHECK(found.size() == 64);
    benchmark::DoNotOptimize(found.data());
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}
BENCHMARK(translate)->ArgNames({"regions", "near"})->ArgsProduct({{1, 8, 500}, {0, 1}});

// Between buffers that a ring of 256 places has: neither in the nearest cache nor out of all.
void copy(benchmark::State& state) {
  constexpr std::size_t buffers = 256;
  const auto size = static_cast<std::size_t>(state.range(0));
  const auto stride = (size + 4095) / 4096 * 4096;
  std::vector<std::byte> from(buffers * stride, std::byte{1}), to(buffers * stride);
  std::size_t next = 0;
  for (auto _ : state) {
    const auto at = next++ % buffers * stride;
    std::memcpy(to.data() + at, from.data() + at, size);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * size));
}
BENCHMARK(copy)->ArgName("bytes")->Arg(60)->Arg(128)->Arg(1514)->Arg(4096)->Arg(9000)->Arg(65536);

}  // namespace
}  // namespace millrace::virtio

// Translation of guest addresses, in few and many regions, and copies of the sizes that frames and
// requests have.
#include <benchmark/benchmark.h>
#include <emmintrin.h>

#include <algorithm>
#include <cstdint>
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

void copy_as_ever(std::byte* to, const std::byte* from, std::size_t size) {
  std::memcpy(to, from, size);
}
// The copy's lines go to memory past the caches. The ends, which share lines with others, do not.
void copy_past_caches(std::byte* to, const std::byte* from, std::size_t size) {
  constexpr std::size_t word = sizeof(__m128i);
  const std::size_t off = reinterpret_cast<std::uintptr_t>(to) % word;
  const std::size_t first = std::min(size, off == 0 ? 0 : word - off);
  std::memcpy(to, from, first);
  std::size_t at = first;
  for (; at + word <= size; at += word) {
    const auto* source = reinterpret_cast<const __m128i*>(from + at);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at), _mm_loadu_si128(source));
  }
  std::memcpy(to + at, from + at, size - at);
}

// Between buffers that a ring of 256 places has: neither in the nearest cache nor out of all;
// behind a net header of 12 bytes, as frames lie. `show` comes after each burst, before the index
// that shows it. `read`: a receiver looks at all lines of what was copied a burst ago.
template <class Copy, class Show>
void between_rings(benchmark::State& state, Copy copy_one, Show show) {
  constexpr std::size_t buffers = 256, burst = 32, header = 12, line = 64;
  const auto size = static_cast<std::size_t>(state.range(0));
  const bool read = state.range(1) != 0;
  const auto stride = (header + size + 4095) / 4096 * 4096;
  std::vector<std::byte> from(buffers * stride, std::byte{1}), to(buffers * stride);
  const auto place = [stride](std::size_t turn) { return turn % buffers * stride + header; };
  std::size_t next = burst;
  unsigned sum = 0;
  for (auto _ : state) {
    copy_one(to.data() + place(next), from.data() + place(next), size);
    benchmark::ClobberMemory();
    if (++next % burst == 0) show();
    const std::byte* before = to.data() + place(next - burst - 1);
    for (std::size_t i = 0; read && i < size; i += line) {
      sum += std::to_integer<unsigned>(before[i]);
    }
  }
  benchmark::DoNotOptimize(sum);
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * size));
}
void copy(benchmark::State& state) {
  between_rings(state, copy_as_ever, [] {});
}
void copy_non_temporal(benchmark::State& state) {
  between_rings(state, copy_past_caches, [] { _mm_sfence(); });
}
BENCHMARK(copy)
    ->ArgNames({"bytes", "read"})
    ->ArgsProduct({{60, 64, 128, 1500, 4096, 9000, 65536}, {0, 1}});
BENCHMARK(copy_non_temporal)->ArgNames({"bytes", "read"})->ArgsProduct({{64, 1500, 65536}, {0, 1}});

}  // namespace
}  // namespace millrace::virtio

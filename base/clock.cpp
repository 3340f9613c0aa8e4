#include "base/clock.hpp"

#include <time.h>

#include <algorithm>
#include <limits>

namespace millrace::base {

namespace {

constexpr std::uint64_t second_ns = 1'000'000'000;

std::uint64_t clock_ns(clockid_t id) noexcept {
  timespec now{};
  ::clock_gettime(id, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * second_ns +
         static_cast<std::uint64_t>(now.tv_nsec);
}

struct Instant {
  std::uint64_t cycles, ns;
};

// Reads both clocks as one; of several tries the one that was interrupted least.
Instant read_both() noexcept {
  Instant best{};
  auto width_min = std::numeric_limits<std::uint64_t>::max();
  for (int i = 0; i < 8; ++i) {
    const auto before = cycles();
    const auto ns = clock_ns(CLOCK_MONOTONIC_RAW);
    const auto width = cycles() - before;
    if (width >= width_min) continue;
    width_min = width;
    best = {before + width / 2, ns};
  }
  return best;
}

// Ratios as fixed-point numbers with 32 fraction bits.
struct Rate {
  double hertz;
  std::uint64_t ns_per_cycle, cycles_per_ns;
};

Rate measure() noexcept {
  const auto start = read_both();
  const timespec wait{0, 10'000'000};
  ::nanosleep(&wait, nullptr);
  const auto end = read_both();
  const auto hertz = static_cast<double>(end.cycles - start.cycles) * 1e9 /
                     static_cast<double>(std::max<std::uint64_t>(end.ns - start.ns, 1));
  constexpr double one = 4294967296.0;
  return {hertz, static_cast<std::uint64_t>(one * 1e9 / hertz),
          static_cast<std::uint64_t>(one * hertz / 1e9)};
}

const Rate& rate() noexcept {
  static const Rate measured = measure();
  return measured;
}

std::uint64_t scale(std::uint64_t value, std::uint64_t factor) noexcept {
  __extension__ using Wide = unsigned __int128;
  const auto product = (Wide{value} * factor) >> 32;
  constexpr auto max = std::numeric_limits<std::uint64_t>::max();
  return product > max ? max : static_cast<std::uint64_t>(product);
}

}  // namespace

double cycles_per_second() noexcept {
  return rate().hertz;
}

std::uint64_t cycles_to_ns(std::uint64_t cycles) noexcept {
  return scale(cycles, rate().ns_per_cycle);
}

std::uint64_t ns_to_cycles(std::uint64_t ns) noexcept {
  return scale(ns, rate().cycles_per_ns);
}

std::uint64_t monotonic_ns() noexcept {
  return clock_ns(CLOCK_MONOTONIC);
}

}  // namespace millrace::base

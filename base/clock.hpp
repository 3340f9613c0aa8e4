// Time on the hot path: the constant-rate time-stamp counter, converted once calibrated.
#pragma once

#include <x86intrin.h>

#include <cstdint>

namespace millrace::base {

[[nodiscard]] inline std::uint64_t cycles() noexcept { return __rdtsc(); }

// Cycles per second of the TSC, measured once at first use (about 10 ms). Thread: any; call it
// before a reactor starts.
[[nodiscard]] double cycles_per_second() noexcept;

[[nodiscard]] std::uint64_t cycles_to_ns(std::uint64_t cycles) noexcept;
[[nodiscard]] std::uint64_t ns_to_cycles(std::uint64_t ns) noexcept;

// CLOCK_MONOTONIC in nanoseconds. Control thread.
[[nodiscard]] std::uint64_t monotonic_ns() noexcept;

}  // namespace millrace::base

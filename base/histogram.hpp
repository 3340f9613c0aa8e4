// Histograms of durations in nanoseconds. Histogram has 8 buckets an octave, so a percentile is
// right within 12.5 %; FineHistogram 64, within 1.6 %.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "base/counter.hpp"

namespace millrace::base {

template <unsigned SubBits>
class HistogramOf {
 public:
  static constexpr unsigned sub_bits = SubBits;
  static constexpr unsigned buckets = (40 - sub_bits + 1) << sub_bits;  // up to 2^40 ns (18 min)
  using Snapshot = std::array<std::uint64_t, buckets>;

  // Thread: the owner only.
  void add(std::uint64_t ns) noexcept { counts_[index(ns)].add(); }
  // Thread: any. Not a single instant, but every bucket is a value that was true.
  [[nodiscard]] Snapshot snapshot() const noexcept {
    Snapshot out;
    for (unsigned i = 0; i < buckets; ++i) out[i] = counts_[i].get();
    return out;
  }

  [[nodiscard]] static constexpr unsigned index(std::uint64_t ns) noexcept {
    if (ns < (1u << sub_bits)) return static_cast<unsigned>(ns);
    const auto octave = static_cast<unsigned>(std::bit_width(ns)) - 1 - sub_bits;
    const auto at =
        ((octave + 1) << sub_bits) + static_cast<unsigned>((ns >> octave) & ((1u << sub_bits) - 1));
    return at < buckets ? at : buckets - 1;
  }
  // The smallest value that falls into bucket `at`.
  [[nodiscard]] static constexpr std::uint64_t lower_bound(unsigned at) noexcept {
    if (at < (1u << sub_bits)) return at;
    const unsigned octave = (at >> sub_bits) - 1;
    return ((1ull << sub_bits) + (at & ((1u << sub_bits) - 1))) << octave;
  }
  // The value below which a share `q` (0 to 1) of `counts` lies; 0 if `counts` is empty.
  [[nodiscard]] static std::uint64_t quantile(const Snapshot& counts, double q) noexcept {
    std::uint64_t total = 0;
    for (const auto count : counts) total += count;
    if (total == 0) return 0;
    const double want = q * static_cast<double>(total);
    std::uint64_t seen = 0;
    for (unsigned i = 0; i < buckets; ++i) {
      seen += counts[i];
      if (static_cast<double>(seen) >= want && counts[i] != 0) return lower_bound(i + 1) - 1;
    }
    return lower_bound(buckets - 1);
  }

 private:
  std::array<Counter, buckets> counts_;
};

using Histogram = HistogramOf<3>;
using FineHistogram = HistogramOf<6>;

}  // namespace millrace::base

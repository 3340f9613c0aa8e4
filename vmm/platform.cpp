#include "vmm/platform.hpp"

#include <algorithm>
#include <string>

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

constexpr std::uint64_t gibibyte = 1ull << 30;
constexpr std::uint64_t window_alignment = 32 * gibibyte, window_max = 64 * gibibyte;

}  // namespace

Result<MemoryWindow> choose_high_window(const GuestRam& ram, unsigned physical_bits) {
  const auto top = std::max(GuestRam::hole_end, ram.end_of_all());
  const std::uint64_t limit = 1ull << std::clamp(physical_bits, 32u, 52u);
  const auto start = (top + window_alignment - 1) / window_alignment * window_alignment;
  if (start >= limit || limit - start < window_alignment) {
    return fail("the processor's " + std::to_string(physical_bits) +
                "-bit addresses leave no room for devices above this much memory: give the guest "
                "less");
  }
  return MemoryWindow{start, std::min(limit - start, window_max)};
}

}  // namespace millrace::vmm

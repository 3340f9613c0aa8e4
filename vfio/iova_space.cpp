#include "vfio/iova_space.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace millrace::vfio {

namespace {

constexpr std::uint64_t gibibyte = 1ull << 30, low_end = 4 * gibibyte;
// Pages of an x86 IOMMU, largest first.
constexpr std::array<std::uint64_t, 3> pages{gibibyte, 2ull << 20, 4096};

// The first address from `from` on that lies like `address` in a page of that size; 0: none.
std::uint64_t alike(std::uint64_t from, std::uint64_t address, std::uint64_t page) {
  const std::uint64_t at = (from & ~(page - 1)) | (address & (page - 1));
  return at >= from ? at : at + page;
}

}  // namespace

IovaSpace::IovaSpace(std::vector<IovaRange> ranges) : ranges_{std::move(ranges)} {
  if (ranges_.empty()) ranges_.push_back({0, (1ull << 48) - 1});
}

std::optional<std::uint64_t> IovaSpace::take(std::uint64_t address, std::uint64_t bytes) {
  const auto page = *std::ranges::find_if(
      pages, [bytes](std::uint64_t size) { return bytes >= size || size == pages.back(); });
  // Address 0 is what a device that was set up wrongly would use.
  for (const std::uint64_t from : {low_end, std::uint64_t{1} << 20}) {
    const auto found = search(from, address, bytes, page);
    if (!found) continue;
    taken_[*found] = bytes;
    return found;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> IovaSpace::search(std::uint64_t from, std::uint64_t address,
                                               std::uint64_t bytes, std::uint64_t page) const {
  for (const IovaRange& range : ranges_) {
    if (range.last < from) continue;
    std::uint64_t at = alike(std::max(from, range.first), address, page);
    for (const auto& [first, size] : taken_) {
      if (first + (size - 1) < at) continue;
      if (at + (bytes - 1) < first) break;
      at = alike(first + size, address, page);
    }
    // Neither wraps: an address has far less than 64 bits.
    if (at <= range.last && bytes - 1 <= range.last - at) return at;
  }
  return std::nullopt;
}

}  // namespace millrace::vfio

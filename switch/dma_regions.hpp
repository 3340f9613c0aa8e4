// DmaRegions: the guests' memory that an uplink's device can read, by our addresses, and by which
// addresses (IOVAs) it does. An immutable snapshot: control makes a new one for every change.
// Threads: any, it is const; a Hint is one reactor's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace millrace::vswitch {

struct DmaRegion {
  std::uintptr_t begin, end;             // our addresses
  std::uint64_t iova;                    // of the first byte
  std::shared_ptr<const void> memory{};  // what keeps the bytes there
};

class DmaRegions {
 public:
  DmaRegions() = default;
  // They do not overlap.
  explicit DmaRegions(std::vector<DmaRegion> regions) : regions_{std::move(regions)} {
    std::ranges::sort(regions_, {}, &DmaRegion::begin);
  }

  // Where the caller last hit. Speeds find() up, changes no result.
  struct Hint {
    std::size_t last = 0;
  };
  // The device's address of `data`; nothing where not all of its `size` bytes are in one region.
  [[nodiscard]] std::optional<std::uint64_t> find(const std::byte* data, std::size_t size,
                                                  Hint& hint) const noexcept {
    const auto at = reinterpret_cast<std::uintptr_t>(data);
    if (hint.last >= regions_.size() || !holds(regions_[hint.last], at, size)) {
      const auto after = std::ranges::upper_bound(regions_, at, {}, &DmaRegion::begin);
      if (after == regions_.begin() || !holds(*std::prev(after), at, size)) return std::nullopt;
      hint.last = static_cast<std::size_t>(std::prev(after) - regions_.begin());
    }
    const DmaRegion& region = regions_[hint.last];
    return region.iova + (at - region.begin);
  }
  [[nodiscard]] const std::vector<DmaRegion>& all() const noexcept { return regions_; }

 private:
  [[nodiscard]] static bool holds(const DmaRegion& region, std::uintptr_t at,
                                  std::size_t size) noexcept {
    return at >= region.begin && at < region.end && size <= region.end - at;
  }
  std::vector<DmaRegion> regions_;  // by address
};

}  // namespace millrace::vswitch

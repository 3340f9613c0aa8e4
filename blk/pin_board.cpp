#include "blk/pin_board.hpp"

#include <algorithm>

namespace millrace::blk {

PinBoard::Range PinBoard::range_of(const virtio::Region& region) {
  const auto& place = region.mapping->place();
  return {place.file_system, place.inode, place.offset, place.offset + region.size};
}

void PinBoard::add(const virtio::GuestMemory& memory) {
  const std::lock_guard lock{mutex_};
  for (const auto& region : memory.regions()) ranges_.push_back(range_of(region));
}

void PinBoard::remove(const virtio::GuestMemory& memory) {
  const std::lock_guard lock{mutex_};
  for (const auto& region : memory.regions()) {
    const auto found = std::find(ranges_.begin(), ranges_.end(), range_of(region));
    CHECK(found != ranges_.end());
    ranges_.erase(found);
  }
}

bool PinBoard::holds(const virtio::GuestMemory& memory, std::uint64_t guest_address,
                     std::uint64_t bytes) const {
  const std::lock_guard lock{mutex_};
  if (ranges_.empty() || bytes == 0) return false;
  const std::uint64_t last = guest_address + (bytes - 1);
  for (const auto& region : memory.regions()) {
    const std::uint64_t region_last = region.guest_address + (region.size - 1);
    if (last < region.guest_address || guest_address > region_last) continue;
    const Range whole = range_of(region);
    const std::uint64_t begin =
        whole.begin + (std::max(guest_address, region.guest_address) - region.guest_address);
    const std::uint64_t end =
        whole.begin + (std::min(last, region_last) - region.guest_address) + 1;
    for (const Range& range : ranges_) {
      if (range.file_system == whole.file_system && range.inode == whole.inode &&
          begin < range.end && range.begin < end) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace millrace::blk

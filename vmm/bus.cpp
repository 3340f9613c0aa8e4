#include "vmm/bus.hpp"

#include <algorithm>
#include <limits>
#include <mutex>

#include "base/hex.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

Result<void> Bus::map(std::uint64_t start, std::uint64_t size, BusDevice& device) {
  if (size == 0 || size - 1 > std::numeric_limits<std::uint64_t>::max() - start) {
    return fail("no device can answer " + base::format_hex(size) + " bytes at " +
                base::format_hex(start));
  }
  const auto last = start + (size - 1);
  const std::lock_guard lock{mutex_};
  const auto after = ranges_.upper_bound(last);  // ranges before it start at or before `last`
  if (after != ranges_.begin()) {
    const auto& before = *std::prev(after)->second;
    if (before.start + (before.size - 1) >= start) {
      return fail("two devices would answer at " + base::format_hex(std::max(start, before.start)));
    }
  }
  auto range = std::make_shared<Range>();
  range->start = start;
  range->size = size;
  range->device = &device;
  ranges_.emplace(start, std::move(range));
  return {};
}

void Bus::unmap(std::uint64_t start) {
  std::shared_ptr<Range> range;
  {
    const std::lock_guard lock{mutex_};
    const auto found = ranges_.find(start);
    if (found == ranges_.end()) return;
    range = std::move(found->second);
    ranges_.erase(found);
  }
  // Nobody finds it any more; wait for those who are at it, and turn away who found it and is not.
  const std::lock_guard all_done{range->in_use};
  range->gone = true;
}

// The two locks are never held together: a device may map and unmap from inside its own access.
Bus::Use Bus::find(std::uint64_t address, std::size_t size) {
  std::shared_lock lock{mutex_};
  const auto after = ranges_.upper_bound(address);
  if (after == ranges_.begin() || size == 0) return {};
  const auto range = std::prev(after)->second;
  const auto offset = address - range->start;
  if (offset >= range->size || size > range->size - offset) return {};
  lock.unlock();
  std::shared_lock in_use{range->in_use};
  if (range->gone) return {};
  return {range, std::move(in_use)};
}

bool Bus::read(std::uint64_t address, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0xff});
  const auto use = find(address, data.size());
  if (!use.range) return false;
  use.range->device->read(address - use.range->start, data);
  return true;
}

bool Bus::write(std::uint64_t address, std::span<const std::byte> data) {
  const auto use = find(address, data.size());
  if (!use.range) return false;
  use.range->device->write(address - use.range->start, data);
  return true;
}

}  // namespace millrace::vmm

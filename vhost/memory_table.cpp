#include "vhost/memory_table.hpp"

#include <algorithm>
#include <utility>

#include "virtio/limits.hpp"

namespace millrace::vhost {

namespace {

base::Result<virtio::Region> map_region(const wire::MemoryRegion& region, const base::Fd& fd) {
  if (region.size == 0) return base::fail("a memory region of 0 bytes");
  std::uint64_t end = 0;
  if (__builtin_add_overflow(region.guest_address, region.size, &end) ||
      __builtin_add_overflow(region.user_address, region.size, &end) ||
      __builtin_add_overflow(region.file_offset, region.size, &end)) {
    return base::fail("a memory region wraps around");
  }
  if (region.size > MemoryTable::bytes_max) return base::fail("a memory region is too large");
  if (base::kind_of(fd) != base::FdKind::memory) {
    return base::fail("guest memory is not a memfd, tmpfs or hugetlbfs file (share=on is needed)");
  }
  auto mapping = base::Mapping::map(fd, region.file_offset, region.size);
  if (!mapping) return base::Unexpected{mapping.error()};
  return virtio::Region{.guest_address = region.guest_address,
                        .size = region.size,
                        .user_address = region.user_address,
                        .mapping = std::move(mapping).value()};
}

bool same(const virtio::Region& have, const wire::MemoryRegion& asked) {
  return have.guest_address == asked.guest_address && have.user_address == asked.user_address &&
         have.size == asked.size;
}

std::uint64_t sum(const std::vector<virtio::Region>& regions) {
  std::uint64_t bytes = 0;
  for (const auto& region : regions) bytes += region.size;
  return bytes;
}

}  // namespace

base::Result<void> MemoryTable::replace(std::span<const wire::MemoryRegion> regions,
                                        std::span<base::Fd> fds) {
  CHECK(regions.size() == fds.size());
  std::vector<virtio::Region> next;
  next.reserve(regions.size());
  for (std::size_t i = 0; i < regions.size(); ++i) {
    auto mapped = map_region(regions[i], fds[i]);
    if (!mapped) return base::Unexpected{mapped.error()};
    next.push_back(std::move(mapped).value());
    if (sum(next) > bytes_max) return base::fail("more guest memory than one front-end may have");
  }
  return adopt(std::move(next));
}

base::Result<void> MemoryTable::add(const wire::MemoryRegion& region, const base::Fd& fd) {
  std::vector<virtio::Region> next = regions_;
  std::erase_if(next, [&](const virtio::Region& have) { return same(have, region); });
  if (next.size() >= virtio::limits::memory_slots_max) {
    return base::fail("all " + std::to_string(virtio::limits::memory_slots_max) +
                      " memory slots are taken");
  }
  if (region.size > bytes_max || sum(next) > bytes_max - region.size) {
    return base::fail("more guest memory than one front-end may have");
  }
  auto mapped = map_region(region, fd);
  if (!mapped) return base::Unexpected{mapped.error()};
  next.push_back(std::move(mapped).value());
  return adopt(std::move(next));
}

base::Result<void> MemoryTable::remove(const wire::MemoryRegion& region) {
  std::vector<virtio::Region> next = regions_;
  if (std::erase_if(next, [&](const virtio::Region& have) { return same(have, region); }) == 0) {
    return base::fail("no such memory region");
  }
  return adopt(std::move(next));
}

base::Result<void> MemoryTable::adopt(std::vector<virtio::Region> regions) {
  auto built = virtio::GuestMemory::build(regions);
  if (!built) return base::Unexpected{built.error()};
  regions_ = std::move(regions);
  snapshot_ = std::move(built).value();
  return {};
}

void MemoryTable::clear() {
  regions_.clear();
  snapshot_.reset();
}

std::uint64_t MemoryTable::bytes() const {
  return sum(regions_);
}

}  // namespace millrace::vhost

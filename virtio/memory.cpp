#include "virtio/memory.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "base/hex.hpp"
#include "virtio/limits.hpp"

namespace millrace::virtio {
namespace {

bool wraps(std::uint64_t address, std::uint64_t size) {
  return size > std::numeric_limits<std::uint64_t>::max() - address;
}

base::Result<void> check(const Region& region) {
  const auto at = base::format_hex(region.guest_address);
  if (region.size == 0) return base::fail("memory region at guest address " + at + " is empty");
  if (wraps(region.guest_address, region.size)) {
    return base::fail("memory region at guest address " + at + " wraps around");
  }
  if (wraps(region.user_address, region.size)) {
    return base::fail("memory region at user address " + base::format_hex(region.user_address) +
                      " wraps around");
  }
  CHECK(region.mapping != nullptr);
  if (region.mapping->size() < region.size) {
    return base::fail("memory region at guest address " + at + " is larger than its mapping");
  }
  return {};
}

}  // namespace

base::Result<std::shared_ptr<const GuestMemory>> GuestMemory::build(std::vector<Region> regions) {
  if (regions.size() > limits::memory_slots_max) {
    return base::fail("more than " + std::to_string(limits::memory_slots_max) + " memory regions");
  }
  for (const auto& region : regions) {
    if (auto ok = check(region); !ok) return base::Unexpected{ok.error()};
  }
  std::sort(regions.begin(), regions.end(),
            [](const Region& a, const Region& b) { return a.guest_address < b.guest_address; });
  for (std::size_t i = 1; i < regions.size(); ++i) {
    if (regions[i - 1].guest_address + regions[i - 1].size > regions[i].guest_address) {
      return base::fail("memory regions overlap at guest address " +
                        base::format_hex(regions[i].guest_address));
    }
  }
  std::shared_ptr<GuestMemory> memory{new GuestMemory{std::move(regions)}};
  const auto& by_user = memory->by_user_;
  for (std::size_t i = 1; i < by_user.size(); ++i) {
    const Region& before = memory->regions_[by_user[i - 1]];
    const Region& region = memory->regions_[by_user[i]];
    if (before.user_address + before.size > region.user_address) {
      return base::fail("memory regions overlap at user address " +
                        base::format_hex(region.user_address));
    }
  }
  return std::shared_ptr<const GuestMemory>{std::move(memory)};
}

GuestMemory::GuestMemory(std::vector<Region> regions) : regions_{std::move(regions)} {
  for (const Region& region : regions_) {
    spans_.push_back({region.guest_address, region.size, region.mapping->data()});
  }
  span_count_ = static_cast<std::uint32_t>(spans_.size());
  by_user_.resize(regions_.size());
  std::iota(by_user_.begin(), by_user_.end(), 0u);
  std::sort(by_user_.begin(), by_user_.end(), [this](std::uint32_t a, std::uint32_t b) {
    return regions_[a].user_address < regions_[b].user_address;
  });
}

std::span<std::byte> GuestMemory::search(std::uint64_t address, std::uint64_t size,
                                         Hint& hint) const noexcept {
  std::size_t low = 0, high = spans_.size();  // the last region that starts at or below `address`
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    if (spans_[middle].guest_address <= address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return {};
  const Span& span = spans_[low - 1];
  if (address - span.guest_address >= span.size) return {};
  hint.last = static_cast<std::uint32_t>(low - 1);
  return slice(span, address, size);
}

const Region* GuestMemory::find_user(std::uint64_t address) const noexcept {
  const auto after = std::upper_bound(
      by_user_.begin(), by_user_.end(), address,
      [this](std::uint64_t at, std::uint32_t i) { return at < regions_[i].user_address; });
  if (after == by_user_.begin()) return nullptr;
  const Region& region = regions_[*(after - 1)];
  return address - region.user_address < region.size ? &region : nullptr;
}

std::byte* GuestMemory::from_user(std::uint64_t address, std::uint64_t size) const noexcept {
  const Region* region = find_user(address);
  if (region == nullptr) return nullptr;
  const std::uint64_t offset = address - region->user_address;
  if (size > region->size - offset) return nullptr;
  return region->mapping->data() + offset;
}

bool GuestMemory::user_to_guest(std::uint64_t address, std::uint64_t& guest) const noexcept {
  const Region* region = find_user(address);
  if (region == nullptr) return false;
  guest = region->guest_address + (address - region->user_address);
  return true;
}

bool GuestMemory::faulted() const noexcept {
  return std::any_of(regions_.begin(), regions_.end(),
                     [](const Region& region) { return region.mapping->faulted(); });
}

std::uint64_t GuestMemory::guest_end() const noexcept {
  return regions_.empty() ? 0 : regions_.back().guest_address + regions_.back().size;
}

}  // namespace millrace::virtio

#include "vmm/kvm_bar_slots.hpp"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <string>

#include "base/error.hpp"

namespace millrace::vmm {

using base::Result;

// RAM at the start, what is added to it and its managed regions take fewer.
static_assert(KvmBarSlots::first > 2 + GuestRam::slots_max + GuestRam::managed_max);

Result<unsigned> KvmBarSlots::add(std::uint64_t guest_address, std::uint64_t size,
                                  std::byte* host) {
  const std::lock_guard lock{mutex_};
  const auto free = std::ranges::find(taken_, false);
  if (free == taken_.end()) {
    return base::fail("a guest has at most " + std::to_string(most) +
                      " mapped parts of host functions");
  }
  const auto index = static_cast<unsigned>(free - taken_.begin());
  kvm_userspace_memory_region region{};
  region.slot = first + index;
  region.guest_phys_addr = guest_address;
  region.memory_size = size;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(host);
  if (::ioctl(vm_.fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return base::fail_errno("KVM refuses to map a BAR");
  }
  *free = true;
  return first + index;
}

void KvmBarSlots::remove(unsigned slot) {
  const std::lock_guard lock{mutex_};
  kvm_userspace_memory_region region{};  // of no size: it goes
  region.slot = slot;
  ::ioctl(vm_.fd(), KVM_SET_USER_MEMORY_REGION, &region);
  taken_[slot - first] = false;
}

}  // namespace millrace::vmm

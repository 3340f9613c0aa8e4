#include "vmm/kvm_vm.hpp"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <utility>

#include "base/error.hpp"

namespace millrace::vmm {

using base::fail_errno;
using base::Result;

namespace {

// Pages that KVM wants for itself on Intel processors: three for a task state, one for a page
// table of real mode. Between the IOAPIC and the top of the 32-bit space, where nothing else is.
constexpr unsigned long identity_map_page = 0xfffb'c000, task_state_pages = 0xfffb'd000;

}  // namespace

Result<KvmVm> KvmVm::make(const KvmSystem& system, const GuestRam& ram) {
  int fd = -1;
  do {
    fd = ::ioctl(system.fd(), KVM_CREATE_VM, 0ul);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return fail_errno("KVM makes no virtual machine");
  KvmVm vm{base::Fd{fd}};
  if (auto ok = vm.set_up(ram); !ok) return base::Unexpected{ok.error()};
  return vm;
}

Result<void> KvmVm::set_up(const GuestRam& ram) {
  std::uint64_t identity = identity_map_page;
  if (::ioctl(fd(), KVM_SET_IDENTITY_MAP_ADDR, &identity) != 0 ||
      ::ioctl(fd(), KVM_SET_TSS_ADDR, task_state_pages) != 0) {
    return fail_errno("KVM refuses the place of its own pages");
  }
  kvm_enable_cap split{};
  split.cap = KVM_CAP_SPLIT_IRQCHIP;
  split.args[0] = ioapic_pins;
  if (::ioctl(fd(), KVM_ENABLE_CAP, &split) != 0) {
    return fail_errno("KVM refuses a split irqchip");
  }
  for (const auto& region : ram.regions()) {
    if (auto ok = add_memory(region); !ok) return ok;
  }
  return {};
}

Result<void> KvmVm::add_memory(const RamRegion& region) {
  kvm_userspace_memory_region memory{};
  memory.slot = memory_slots_;
  memory.guest_phys_addr = region.guest_address;
  memory.memory_size = region.size;
  memory.userspace_addr = reinterpret_cast<std::uintptr_t>(region.host);
  if (::ioctl(fd(), KVM_SET_USER_MEMORY_REGION, &memory) != 0) {
    return fail_errno("KVM refuses the guest's memory");
  }
  ++memory_slots_;
  return {};
}

Result<void> KvmVm::assign(std::uint64_t guest_address, unsigned length, int eventfd) {
  kvm_ioeventfd bell{};
  bell.addr = guest_address;
  bell.len = length;
  bell.fd = eventfd;
  if (::ioctl(fd(), KVM_IOEVENTFD, &bell) != 0) return fail_errno("KVM refuses a doorbell");
  return {};
}

void KvmVm::remove(std::uint64_t guest_address, unsigned length, int eventfd) {
  kvm_ioeventfd bell{};
  bell.addr = guest_address;
  bell.len = length;
  bell.fd = eventfd;
  bell.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
  ::ioctl(fd(), KVM_IOEVENTFD, &bell);  // ENOENT: there was none
}

void KvmVm::send(const MsiMessage& message) {
  kvm_msi msi{};
  msi.address_lo = static_cast<std::uint32_t>(message.address);
  msi.address_hi = static_cast<std::uint32_t>(message.address >> 32);
  msi.data = message.data;
  ::ioctl(fd(), KVM_SIGNAL_MSI, &msi);  // an error or 0: the guest named no vCPU
}

}  // namespace millrace::vmm

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "base/error.hpp"
#include "vmm/kvm_vcpu.hpp"

namespace millrace::vmm {

using base::fail_errno;
using base::Result;

namespace {

constexpr std::uint64_t cr0_protection = 1, cr0_extension_type = 1 << 4, cr0_numeric_error = 1 << 5,
                        cr0_write_protect = 1 << 16, cr0_paging = 1u << 31;
constexpr std::uint64_t cr4_physical_extension = 1 << 5;
constexpr std::uint64_t efer_long_enable = 1 << 8, efer_long_active = 1 << 10;
constexpr std::uint16_t code_selector = 0x10, data_selector = 0x18, task_selector = 0x20;
constexpr std::uint16_t gdt_limit = 0x1f;

kvm_segment flat(std::uint16_t selector, std::uint8_t type, bool code64) {
  kvm_segment segment{};
  segment.limit = 0xffff'ffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.l = code64 ? 1 : 0;
  segment.db = code64 ? 0 : 1;
  return segment;
}

kvm_segment task_state() {
  kvm_segment segment{};
  segment.limit = 0x67;
  segment.selector = task_selector;
  segment.type = 11;  // busy 32/64-bit task state
  segment.present = 1;
  return segment;
}

}  // namespace

Result<void> KvmVcpu::set_entry(const EntryState& entry) {
  kvm_sregs system{};
  if (::ioctl(fd_.get(), KVM_GET_SREGS, &system) != 0) return fail_errno("cannot read a vCPU");
  const bool wide = entry.mode == EntryMode::long_mode;
  system.cs = flat(code_selector, 11, wide);  // code: execute, read, accessed
  system.ds = system.es = system.fs = system.gs = system.ss = flat(data_selector, 3, false);
  system.tr = task_state();
  system.gdt.base = entry.gdt;
  system.gdt.limit = gdt_limit;
  system.idt.base = 0;
  system.idt.limit = 0;
  system.cr0 = cr0_protection | cr0_extension_type;
  if (wide) {
    system.cr0 |= cr0_numeric_error | cr0_write_protect | cr0_paging;
    system.cr3 = entry.page_table;
    system.cr4 = cr4_physical_extension;
    system.efer = efer_long_enable | efer_long_active;
  }
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &system) != 0) {
    return fail_errno("KVM refuses the first vCPU's system registers");
  }
  kvm_regs registers{};
  registers.rip = entry.instruction;
  registers.rsp = registers.rbp = entry.stack;
  registers.rflags = 2;
  (wide ? registers.rsi : registers.rbx) = entry.argument;
  if (::ioctl(fd_.get(), KVM_SET_REGS, &registers) != 0) {
    return fail_errno("KVM refuses the first vCPU's registers");
  }
  return {};
}

}  // namespace millrace::vmm

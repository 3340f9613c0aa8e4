// A vCPU that stands still: its registers, and the word to its clock that it did.
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "base/error.hpp"
#include "vmm/kvm_list.hpp"
#include "vmm/kvm_vcpu.hpp"

namespace millrace::vmm {

using base::fail_errno;
using base::Result;

namespace {

constexpr std::uint32_t msr_kernel_gs_base = 0xc000'0102;

CpuSegment segment_of(const kvm_segment& from) {
  const auto bit = [](std::uint8_t value, unsigned place) { return std::uint32_t{value} << place; };
  return {.selector = from.selector,
          .limit = from.limit,
          .flags = bit(from.type, 8) | bit(from.s, 12) | bit(from.dpl, 13) | bit(from.present, 15) |
                   bit(from.avl, 20) | bit(from.l, 21) | bit(from.db, 22) | bit(from.g, 23),
          .base = from.base};
}

CpuSegment table_of(const kvm_dtable& from) {
  return {.selector = 0, .limit = from.limit, .flags = 0, .base = from.base};
}

}  // namespace

Result<CpuState> KvmVcpu::state() const {
  kvm_regs general{};
  kvm_sregs special{};
  if (::ioctl(fd_.get(), KVM_GET_REGS, &general) != 0 ||
      ::ioctl(fd_.get(), KVM_GET_SREGS, &special) != 0) {
    return fail_errno("KVM does not tell a vCPU's registers");
  }
  CpuState state;
  state.rax = general.rax, state.rbx = general.rbx, state.rcx = general.rcx;
  state.rdx = general.rdx, state.rsi = general.rsi, state.rdi = general.rdi;
  state.rsp = general.rsp, state.rbp = general.rbp, state.r8 = general.r8, state.r9 = general.r9;
  state.r10 = general.r10, state.r11 = general.r11, state.r12 = general.r12;
  state.r13 = general.r13, state.r14 = general.r14, state.r15 = general.r15;
  state.rip = general.rip, state.rflags = general.rflags;
  state.cs = segment_of(special.cs), state.ds = segment_of(special.ds);
  state.es = segment_of(special.es), state.fs = segment_of(special.fs);
  state.gs = segment_of(special.gs), state.ss = segment_of(special.ss);
  state.ldt = segment_of(special.ldt), state.tr = segment_of(special.tr);
  state.gdt = table_of(special.gdt), state.idt = table_of(special.idt);
  state.cr = {special.cr0, 0, special.cr2, special.cr3, special.cr4};
  kvm_msr_entry entry{};
  entry.index = msr_kernel_gs_base;
  MsrList list{std::span<const kvm_msr_entry>{&entry, 1}};
  if (::ioctl(fd_.get(), get_msrs, list.data()) == 1) {
    state.kernel_gs_base = list.entries().front().data;
  }
  return state;
}

void KvmVcpu::note_pause() const {
  ::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0);  // EINVAL: the guest does not use that clock
}

}  // namespace millrace::vmm

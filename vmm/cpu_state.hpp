// CpuState: a vCPU's registers as a dump of the guest wants them.
#pragma once

#include <array>
#include <cstdint>

namespace millrace::vmm {

struct CpuSegment {
  std::uint16_t selector = 0;
  std::uint32_t limit = 0;
  std::uint32_t flags = 0;  // as in the second word of a descriptor (Intel SDM volume 3 §3.4.5)
  std::uint64_t base = 0;
};

struct CpuState {
  std::uint64_t rax = 0, rbx = 0, rcx = 0, rdx = 0, rsi = 0, rdi = 0, rsp = 0, rbp = 0, r8 = 0,
                r9 = 0, r10 = 0, r11 = 0, r12 = 0, r13 = 0, r14 = 0, r15 = 0, rip = 0, rflags = 0;
  CpuSegment cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt;
  std::array<std::uint64_t, 5> cr{};  // cr1 is none and stays 0
  std::uint64_t kernel_gs_base = 0;
};

}  // namespace millrace::vmm

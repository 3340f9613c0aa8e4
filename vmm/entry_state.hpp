// EntryState: how the first vCPU begins, as the kernel's boot protocol wants it.
#pragma once

#include <cstdint>

namespace millrace::vmm {

enum class EntryMode {
  long_mode,       // Linux x86 boot protocol, 64-bit entry: paging on, RSI = boot parameters
  protected_mode,  // PVH: flat 32-bit segments, paging off, EBX = start info
};

struct EntryState {
  EntryMode mode = EntryMode::long_mode;
  std::uint64_t instruction = 0;  // first instruction, guest physical
  std::uint64_t argument = 0;     // in RSI or EBX
  std::uint64_t stack = 0;
  std::uint64_t page_table = 0;  // identity map of the first 4 GiB; long mode only
  std::uint64_t gdt = 0;         // four descriptors: none, none, code, data
};

}  // namespace millrace::vmm

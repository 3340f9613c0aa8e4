// DumpLayout: the head of a dump of a guest, and where in the file its memory lies: an ELF64 core
// file of physical memory, laid out as QEMU's dump-guest-memory does without paging, which gdb and
// crash read.
//
// One PT_NOTE (of each vCPU an NT_PRSTATUS for gdb, then a note "QEMU" with the control registers;
// the kernel's own VMCOREINFO, where it was found) and a PT_LOAD for each region of memory, with
// its guest-physical address. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmm/cpu_state.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

struct DumpLayout {
  std::vector<std::byte> head;              // the file's first bytes
  std::vector<std::uint64_t> file_offsets;  // of each region, multiples of a page
  std::uint64_t file_size = 0;
};

// At least one vCPU and one region, fewer than 65535 of these.
[[nodiscard]] DumpLayout lay_out_dump(std::span<const RamRegion> regions,
                                      std::span<const CpuState> cpus);

// Adds a note to a layout that has had none added, as it lies in a file: at most
// vmcoreinfo_size_max bytes, a multiple of four. Nothing else moves.
void add_note(DumpLayout& layout, std::span<const std::byte> note);

}  // namespace millrace::vmm

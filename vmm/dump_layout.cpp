#include "vmm/dump_layout.hpp"

#include <elf.h>
#include <sys/procfs.h>

#include <cstring>
#include <string_view>

#include "base/check.hpp"
#include "vmm/vmcoreinfo.hpp"

namespace millrace::vmm {

namespace {

constexpr std::uint64_t dump_page = 4096;

// What QEMU calls QEMUCPUState, version 1.
struct NoteSegment {
  std::uint32_t selector, limit, flags, padding;
  std::uint64_t base;
};
struct NoteCpu {
  std::uint32_t version, size;
  std::uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip,
      rflags;
  NoteSegment cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt;
  std::uint64_t cr[5];
  std::uint64_t kernel_gs_base;
};
static_assert(sizeof(NoteSegment) == 24 && sizeof(NoteCpu) == 440);
constexpr std::uint32_t note_cpu_type = 0, note_cpu_version = 1;
static_assert(sizeof(elf_prstatus) == 336 && sizeof(elf_gregset_t) == sizeof(user_regs_struct));

void append(std::vector<std::byte>& to, const void* from, std::size_t size) {
  const auto* const bytes = static_cast<const std::byte*>(from);
  to.insert(to.end(), bytes, bytes + size);
}

// Name and description each end at a multiple of four bytes.
template <class Description>
void append_note(std::vector<std::byte>& to, std::string_view name, std::uint32_t type,
                 const Description& description) {
  static_assert(sizeof description % 4 == 0);
  const Elf64_Nhdr header{static_cast<std::uint32_t>(name.size() + 1), sizeof description, type};
  append(to, &header, sizeof header);
  append(to, name.data(), name.size());
  to.resize(to.size() + 4 - name.size() % 4);
  append(to, &description, sizeof description);
}

elf_prstatus status_of(const CpuState& cpu, std::size_t number) {
  user_regs_struct registers{};
  registers.r15 = cpu.r15, registers.r14 = cpu.r14, registers.r13 = cpu.r13;
  registers.r12 = cpu.r12, registers.r11 = cpu.r11, registers.r10 = cpu.r10;
  registers.r9 = cpu.r9, registers.r8 = cpu.r8, registers.rbp = cpu.rbp, registers.rbx = cpu.rbx;
  registers.rax = cpu.rax, registers.rcx = cpu.rcx, registers.rdx = cpu.rdx;
  registers.rsi = cpu.rsi, registers.rdi = cpu.rdi, registers.orig_rax = cpu.rax;
  registers.rip = cpu.rip, registers.rsp = cpu.rsp, registers.eflags = cpu.rflags;
  registers.cs = cpu.cs.selector, registers.ss = cpu.ss.selector, registers.ds = cpu.ds.selector;
  registers.es = cpu.es.selector, registers.fs = cpu.fs.selector, registers.gs = cpu.gs.selector;
  registers.fs_base = cpu.fs.base, registers.gs_base = cpu.gs.base;
  elf_prstatus status{};
  status.pr_pid = static_cast<int>(number + 1);  // a thread's number, for gdb: 0 would be none
  std::memcpy(&status.pr_reg, &registers, sizeof registers);
  return status;
}

NoteSegment note_of(const CpuSegment& from) {
  return {from.selector, from.limit, from.flags, 0, from.base};
}

NoteCpu note_of(const CpuState& cpu) {
  return {.version = note_cpu_version,
          .size = sizeof(NoteCpu),
          .rax = cpu.rax,
          .rbx = cpu.rbx,
          .rcx = cpu.rcx,
          .rdx = cpu.rdx,
          .rsi = cpu.rsi,
          .rdi = cpu.rdi,
          .rsp = cpu.rsp,
          .rbp = cpu.rbp,
          .r8 = cpu.r8,
          .r9 = cpu.r9,
          .r10 = cpu.r10,
          .r11 = cpu.r11,
          .r12 = cpu.r12,
          .r13 = cpu.r13,
          .r14 = cpu.r14,
          .r15 = cpu.r15,
          .rip = cpu.rip,
          .rflags = cpu.rflags,
          .cs = note_of(cpu.cs),
          .ds = note_of(cpu.ds),
          .es = note_of(cpu.es),
          .fs = note_of(cpu.fs),
          .gs = note_of(cpu.gs),
          .ss = note_of(cpu.ss),
          .ldt = note_of(cpu.ldt),
          .tr = note_of(cpu.tr),
          .gdt = note_of(cpu.gdt),
          .idt = note_of(cpu.idt),
          .cr = {cpu.cr[0], cpu.cr[1], cpu.cr[2], cpu.cr[3], cpu.cr[4]},
          .kernel_gs_base = cpu.kernel_gs_base};
}

Elf64_Ehdr header_of(std::size_t segments) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_CORE;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_phoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<std::uint16_t>(segments);
  return header;
}

}  // namespace

DumpLayout lay_out_dump(std::span<const RamRegion> regions, std::span<const CpuState> cpus) {
  CHECK(!cpus.empty() && !regions.empty() && regions.size() + 1 < PN_XNUM);
  std::vector<std::byte> notes;
  for (std::size_t i = 0; i < cpus.size(); ++i) {
    append_note(notes, "CORE", NT_PRSTATUS, status_of(cpus[i], i));
  }
  for (const auto& cpu : cpus) append_note(notes, "QEMU", note_cpu_type, note_of(cpu));

  DumpLayout layout;
  const auto header = header_of(regions.size() + 1);
  append(layout.head, &header, sizeof header);
  const auto notes_offset = sizeof header + (regions.size() + 1) * sizeof(Elf64_Phdr);
  Elf64_Phdr segment{};
  segment.p_type = PT_NOTE;
  segment.p_offset = notes_offset;
  segment.p_filesz = segment.p_memsz = notes.size();
  append(layout.head, &segment, sizeof segment);
  const auto notes_end = notes_offset + notes.size() + vmcoreinfo_size_max;
  auto at = (notes_end + dump_page - 1) / dump_page * dump_page;
  for (const auto& region : regions) {
    segment = {};
    segment.p_type = PT_LOAD;
    segment.p_offset = at;
    // gdb looks memory up by virtual addresses, and of these there are none.
    segment.p_paddr = segment.p_vaddr = region.guest_address;
    segment.p_filesz = segment.p_memsz = region.size;
    append(layout.head, &segment, sizeof segment);
    layout.file_offsets.push_back(at);
    at += region.size;
  }
  append(layout.head, notes.data(), notes.size());
  layout.file_size = at;
  return layout;
}

void add_note(DumpLayout& layout, std::span<const std::byte> note) {
  CHECK(note.size() <= vmcoreinfo_size_max && note.size() % 4 == 0);
  Elf64_Phdr segment;
  auto* const at = layout.head.data() + sizeof(Elf64_Ehdr);
  std::memcpy(&segment, at, sizeof segment);
  segment.p_filesz = segment.p_memsz += note.size();
  std::memcpy(at, &segment, sizeof segment);
  layout.head.insert(layout.head.end(), note.begin(), note.end());
}

}  // namespace millrace::vmm

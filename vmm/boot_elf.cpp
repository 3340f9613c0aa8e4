#include <elf.h>

#include <algorithm>
#include <array>
#include <optional>

#include "vmm/boot_parts.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

constexpr std::size_t segments_max = 64;
constexpr std::uint64_t notes_max = 1 << 20;

// Xen's include/public/arch-x86/hvm/start_info.h, version 1.
constexpr std::uint32_t start_magic = 0x336e'c578;
constexpr std::uint32_t note_entry_32 = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
struct StartInfo {
  std::uint32_t magic = start_magic, version = 1, flags = 0, modules = 0;
  std::uint64_t module_list = 0, command_line = 0, rsdp = 0, memory_map = 0;
  std::uint32_t memory_map_entries = 0, reserved = 0;
};
static_assert(sizeof(StartInfo) == 56);
struct StartModule {
  std::uint64_t address = 0, size = 0, command_line = 0, reserved = 0;
};
struct StartMemory {
  std::uint64_t address = 0, size = 0;
  std::uint32_t type = 0, reserved = 0;
};
constexpr std::uint64_t module_at = low::start_info + 0x40, memory_map_at = module_at + 0x40;

struct Program {
  Elf64_Ehdr header{};
  std::vector<Elf64_Phdr> segments;
};

Result<Program> examine_elf(const BootFile& file) {
  Program program;
  auto& header = program.header;
  if (auto ok = file.read(0, std::as_writable_bytes(std::span{&header, 1})); !ok) {
    return base::Unexpected{ok.error()};
  }
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != EM_X86_64 || (header.e_type != ET_EXEC && header.e_type != ET_DYN)) {
    return fail("the " + file.label() + " is an ELF file, but no program for x86-64");
  }
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > segments_max) {
    return fail("the " + file.label() + " has " + std::to_string(header.e_phnum) +
                " ELF segments: 1 to " + std::to_string(segments_max) + " make a kernel");
  }
  program.segments.resize(header.e_phnum);
  if (auto ok = file.read(header.e_phoff, std::as_writable_bytes(std::span{program.segments}));
      !ok) {
    return base::Unexpected{ok.error()};
  }
  return program;
}

// Loads one segment; answers its end.
Result<std::uint64_t> load(const BootFile& file, const Elf64_Phdr& segment, const GuestRam& ram) {
  const auto memory = ram.at(segment.p_paddr, segment.p_memsz);
  if (segment.p_paddr < low::end || segment.p_filesz > segment.p_memsz || memory.empty() ||
      segment.p_paddr >= GuestRam::hole_start) {
    return fail("the " + file.label() + " wants " + std::to_string(segment.p_memsz >> 10) +
                " KiB at address " + std::to_string(segment.p_paddr >> 20) +
                " MiB, which is no memory that it can have: give the guest more memory");
  }
  if (auto ok = file.read(segment.p_offset, memory.first(segment.p_filesz)); !ok) {
    return base::Unexpected{ok.error()};
  }
  std::ranges::fill(memory.subspan(segment.p_filesz), std::byte{0});
  return segment.p_paddr + segment.p_memsz;
}

// Walks the notes of one segment. A note: sizes of name and content, type, then both, each padded
// to four bytes.
Result<std::optional<std::uint64_t>> find_entry_32(const BootFile& file,
                                                   const Elf64_Phdr& segment) {
  std::vector<std::byte> notes(std::min(segment.p_filesz, notes_max));
  if (auto ok = file.read(segment.p_offset, notes); !ok) return base::Unexpected{ok.error()};
  std::span<const std::byte> left{notes};
  while (left.size() >= sizeof(Elf64_Nhdr)) {
    Elf64_Nhdr note;
    std::memcpy(&note, left.data(), sizeof note);
    left = left.subspan(sizeof note);
    const auto padded = [](std::uint64_t size) { return (size + 3) / 4 * 4; };
    const auto name_size = padded(note.n_namesz), content_size = padded(note.n_descsz);
    if (name_size > left.size() || content_size > left.size() - name_size) break;
    const auto name = left.first(name_size), content = left.subspan(name_size, content_size);
    left = left.subspan(name_size + content_size);
    const bool is_xen = note.n_namesz == 4 && std::memcmp(name.data(), "Xen", 4) == 0;
    if (!is_xen || note.n_type != note_entry_32) continue;
    std::uint64_t entry = 0;
    std::memcpy(&entry, content.data(), std::min<std::size_t>(content.size(), sizeof entry));
    if (note.n_descsz == 4 || note.n_descsz == 8) return std::optional{entry};
  }
  return std::optional<std::uint64_t>{};
}

void write_start_info(const GuestRam& ram, const Loaded& initrd, std::uint64_t rsdp) {
  StartInfo info;
  info.command_line = low::command_line;
  info.rsdp = rsdp;
  if (initrd.size != 0) {
    info.modules = 1;
    info.module_list = module_at;
    store_at(ram, module_at, StartModule{initrd.address, initrd.size});
  }
  info.memory_map = memory_map_at;
  for (const auto& entry : make_memory_map(ram)) {
    const auto at = memory_map_at + info.memory_map_entries * sizeof(StartMemory);
    store_at(ram, at, StartMemory{entry.address, entry.size, entry.type});
    ++info.memory_map_entries;
  }
  store_at(ram, low::start_info, info);
}

}  // namespace

Result<EntryState> boot_elf(const BootConfig& config, const BootFile& file, const AcpiImage& acpi,
                            const GuestRam& ram) {
  auto program = examine_elf(file);
  if (!program) return base::Unexpected{program.error()};
  std::uint64_t end = 0;
  std::optional<std::uint64_t> entry_32;
  for (const auto& segment : program->segments) {
    if (segment.p_type == PT_LOAD && segment.p_memsz != 0) {
      const auto loaded = load(file, segment, ram);
      if (!loaded) return base::Unexpected{loaded.error()};
      end = std::max(end, *loaded);
    } else if (segment.p_type == PT_NOTE && !entry_32) {
      const auto found = find_entry_32(file, segment);
      if (!found) return base::Unexpected{found.error()};
      entry_32 = *found;
    }
  }
  if (end == 0) return fail("the " + file.label() + " has nothing to load in it");
  if (auto ok = write_command_line(ram, config.command_line, low::command_line_max); !ok) {
    return base::Unexpected{ok.error()};
  }
  constexpr std::uint64_t initrd_last = 0x7fff'ffff;
  const auto initrd = load_initrd(ram, config.initrd_file.get(), end, initrd_last);
  if (!initrd) return base::Unexpected{initrd.error()};
  if (entry_32) {
    write_start_info(ram, *initrd, acpi.address);
    return EntryState{EntryMode::protected_mode, *entry_32, low::start_info, 0, 0, low::gdt};
  }
  if (auto ok = write_linux_parameters(ram, {{}, *initrd, acpi.address}); !ok) {
    return base::Unexpected{ok.error()};
  }
  return EntryState{EntryMode::long_mode, program->header.e_entry, low::boot_parameters,
                    low::stack,           low::page_tables,        low::gdt};
}

}  // namespace millrace::vmm

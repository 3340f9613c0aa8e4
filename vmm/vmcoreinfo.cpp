#include "vmm/vmcoreinfo.hpp"

#include <elf.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>

namespace millrace::vmm {

namespace {

constexpr char name[] = "VMCOREINFO";
constexpr std::string_view first_line = "OSRELEASE=";
constexpr std::size_t name_size = (sizeof name + 3) / 4 * 4;  // as it lies in the note
constexpr std::size_t text_at = sizeof(Elf64_Nhdr) + name_size;
constexpr std::size_t text_max = 4096;
static_assert(text_at + text_max == vmcoreinfo_size_max);

constexpr std::uint64_t kernel_text_map = 0xffff'ffff'8000'0000;  // __START_KERNEL_map
constexpr std::uint64_t table_address = 0x000f'ffff'ffff'f000;    // of an entry, of CR3
// The last entry of the uppermost table maps the kernel's text. The processor writes bit 5.
constexpr std::uint64_t text_entry = 511 * 8, accessed = 1 << 5;

Elf64_Nhdr header_of(std::span<const std::byte> bytes) {
  Elf64_Nhdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  return header;
}

// The number after `key` at the beginning of a line.
std::optional<std::uint64_t> number_of(std::string_view text, std::string_view key, int base) {
  for (auto at = text.find(key); at != std::string_view::npos; at = text.find(key, at + 1)) {
    if (at != 0 && text[at - 1] != '\n') continue;
    const auto* const from = text.data() + at + key.size();
    const auto* const end = text.data() + text.size();
    if (base == 16) {
      std::uint64_t value = 0;
      if (std::from_chars(from, end, value, base).ec == std::errc{}) return value;
    } else {
      std::int64_t value = 0;  // phys_base is below zero where KASLR chose low memory
      if (std::from_chars(from, end, value, base).ec == std::errc{}) {
        return static_cast<std::uint64_t>(value);
      }
    }
    return std::nullopt;
  }
  return std::nullopt;
}

// The guest-physical address of the kernel's own page table.
std::optional<std::uint64_t> page_table_of(std::span<const std::byte> note) {
  const auto size = header_of(note).n_descsz;
  const std::string_view text{reinterpret_cast<const char*>(note.data() + text_at), size};
  const auto table = number_of(text, "SYMBOL(swapper_pg_dir)=", 16);
  const auto base = number_of(text, "NUMBER(phys_base)=", 10);
  if (!table || !base) return std::nullopt;
  return (*table - kernel_text_map + *base) & table_address;
}

}  // namespace

bool begins_vmcoreinfo(std::span<const std::byte> bytes) {
  if (bytes.size() < text_at + first_line.size()) return false;
  const auto header = header_of(bytes);
  return header.n_namesz == sizeof name && header.n_type == 0 &&
         header.n_descsz >= first_line.size() && header.n_descsz <= text_max &&
         std::memcmp(bytes.data() + sizeof header, name, sizeof name) == 0 &&
         std::memcmp(bytes.data() + text_at, first_line.data(), first_line.size()) == 0;
}

std::vector<std::byte> vmcoreinfo_of(std::span<const std::byte> bytes) {
  if (!begins_vmcoreinfo(bytes)) return {};
  const auto size = text_at + (header_of(bytes).n_descsz + 3) / 4 * 4;
  if (size > bytes.size()) return {};
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)};
}

std::vector<std::byte> choose_vmcoreinfo(std::span<const std::vector<std::byte>> notes,
                                         std::span<const CpuState> cpus,
                                         const ReadGuestWord& read) {
  const auto runs = [&](const std::vector<std::byte>& note) {
    const auto table = page_table_of(note);
    const auto own = table ? read(*table + text_entry) : std::nullopt;
    if (!own || (*own & 1) == 0) return false;
    return std::any_of(cpus.begin(), cpus.end(), [&](const CpuState& cpu) {
      const auto entry = read((cpu.cr[3] & table_address) + text_entry);
      return entry && ((*entry ^ *own) & ~accessed) == 0;
    });
  };
  const auto found = std::find_if(notes.begin(), notes.end(), runs);
  if (found != notes.end()) return *found;
  return notes.size() == 1 ? notes.front() : std::vector<std::byte>{};
}

}  // namespace millrace::vmm

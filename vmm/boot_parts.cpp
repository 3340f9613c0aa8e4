#include "vmm/boot_parts.hpp"

#include <algorithm>
#include <array>

namespace millrace::vmm {

using base::fail;
using base::Result;

std::vector<MemoryMapEntry> make_memory_map(const GuestRam& ram) {
  std::vector<MemoryMapEntry> map;
  map.push_back({0, low::ram_end, MemoryMapEntry::usable});
  map.push_back({low::ram_end, low::end - low::ram_end, MemoryMapEntry::reserved});
  for (const auto& region : ram.regions()) {
    if (region.managed) continue;  // the guest has none of it yet
    const auto from = std::max(region.guest_address, low::end);
    map.push_back({from, region.guest_address + region.size - from, MemoryMapEntry::usable});
  }
  map.push_back({PciRoot::ecam_address, PciRoot::ecam_size, MemoryMapEntry::reserved});
  std::ranges::sort(map, {}, &MemoryMapEntry::address);
  return map;
}

// Intel SDM volume 3 §3.4.5: flat, ring 0; code is 64 bits wide. A vCPU that is entered in
// protected mode has its 32-bit segments loaded already.
void write_gdt(const GuestRam& ram) {
  constexpr std::array<std::uint64_t, 4> descriptors{0, 0, 0x00af'9b00'0000'ffff,
                                                     0x00cf'9300'0000'ffff};
  store_at(ram, low::gdt, descriptors);
}

// Four levels; the last one is of 2 MiB pages. Intel SDM volume 3 §4.5.
void write_page_tables(const GuestRam& ram) {
  constexpr std::uint64_t table = 4096, large_page = 1 << 21, gibibytes = 4, entries = 512;
  constexpr std::uint64_t present_writable = 3, is_large = 1 << 7;
  const auto top = low::page_tables, middle = top + table, last = middle + table;
  store_at(ram, top, middle | present_writable);
  for (std::uint64_t i = 0; i < gibibytes; ++i) {
    store_at(ram, middle + 8 * i, (last + table * i) | present_writable);
  }
  for (std::uint64_t i = 0; i < gibibytes * entries; ++i) {
    store_at(ram, last + 8 * i, i * large_page | present_writable | is_large);
  }
}

void write_reset_vector(const GuestRam& ram) {
  // mov al, 6; mov dx, 0xcf9; out dx, al; hlt, in 16-bit code.
  constexpr std::array<std::uint8_t, 7> code{0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee, 0xf4};
  static_assert(low::reset_vector + code.size() <= low::end);
  store_at(ram, low::reset_vector, code);
}

Result<void> write_command_line(const GuestRam& ram, const std::string& text, std::uint64_t most) {
  const auto limit = std::min(most, low::command_line_max - 1);
  if (text.size() > limit) {
    return fail("the kernel's command line has " + std::to_string(text.size()) +
                " characters; this kernel takes " + std::to_string(limit));
  }
  if (text.find('\0') != std::string::npos) {
    return fail("the kernel's command line has a zero byte in it");
  }
  const auto bytes = ram.at(low::command_line, text.size() + 1);
  CHECK(bytes.size() == text.size() + 1);
  std::memcpy(bytes.data(), text.c_str(), text.size() + 1);
  return {};
}

Result<Loaded> load_initrd(const GuestRam& ram, const BootFile* file, std::uint64_t after,
                           std::uint64_t last) {
  if (file == nullptr) return Loaded{};
  if (file->size() == 0) return fail("the " + file->label() + " is empty");
  constexpr std::uint64_t page = 4096;
  const auto& memory = ram.regions().front();
  const auto end = std::min(memory.size, last + 1);
  const auto first = (after + page - 1) / page * page;
  if (first > end || file->size() > (end - first) / page * page) {
    return fail("the " + file->label() + " has " + std::to_string(file->size() >> 10) +
                " KiB, and beside the kernel only " +
                std::to_string(first > end ? 0 : (end - first) >> 10) +
                " KiB of memory are left: give the guest more memory");
  }
  const auto address = (end - file->size()) / page * page;
  if (auto ok = file->load(0, file->size(), ram, address); !ok) {
    return base::Unexpected{ok.error()};
  }
  return Loaded{address, file->size()};
}

}  // namespace millrace::vmm

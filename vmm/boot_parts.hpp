// The parts of booting that the kinds of kernels have in common. See boot.hpp.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "base/check.hpp"
#include "vmm/boot.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

// A range of the guest's memory and what it is. Types as in ACPI's address map and Linux's e820.
struct MemoryMapEntry {
  static constexpr std::uint32_t usable = 1, reserved = 2;
  std::uint64_t address = 0, size = 0;
  std::uint32_t type = usable;
};
[[nodiscard]] std::vector<MemoryMapEntry> make_memory_map(const GuestRam& ram);

// Writes to memory that the caller knows to be RAM.
template <class T>
void store_at(const GuestRam& ram, std::uint64_t address, const T& value) {
  const auto bytes = ram.at(address, sizeof value);
  CHECK(bytes.size() == sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
}

// Four descriptors for the entry state, and the identity map of 4 GiB.
void write_gdt(const GuestRam& ram);
void write_page_tables(const GuestRam& ram);

// Where a PC's firmware begins: three instructions that reset the machine. A stock kernel that
// finds hardware-reduced ACPI reboots through EFI, and where there is none goes there at last.
void write_reset_vector(const GuestRam& ram);

// Fails where it is longer than `most`, or than there is room for.
base::Result<void> write_command_line(const GuestRam& ram, const std::string& text,
                                      std::uint64_t most);

struct Loaded {
  std::uint64_t address = 0, size = 0;
};
// As high as possible, at most up to `last`, above `after`. Size 0 where there is no initrd (null).
base::Result<Loaded> load_initrd(const GuestRam& ram, const BootFile* file, std::uint64_t after,
                                 std::uint64_t last);

base::Result<EntryState> boot_bzimage(const BootConfig& config, const BootFile& file,
                                      const AcpiImage& acpi, const GuestRam& ram);
base::Result<EntryState> boot_elf(const BootConfig& config, const BootFile& file,
                                  const AcpiImage& acpi, const GuestRam& ram);

// The zero page of the Linux boot protocol, without what only a bzImage has.
struct LinuxParameters {
  std::span<const std::byte> header;  // a bzImage's set-up header from 0x1f1; empty: none
  Loaded initrd;
  std::uint64_t rsdp = 0;
};
base::Result<void> write_linux_parameters(const GuestRam& ram, const LinuxParameters& parameters);

}  // namespace millrace::vmm

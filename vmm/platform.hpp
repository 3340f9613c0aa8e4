// Platform: where what is in the guest: the numbers that the machine, its ACPI tables and the boot
// loader have in common.
#pragma once

#include <array>
#include <cstdint>

#include "vmm/pci_root.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

// A serial port and its pin.
struct SerialPlace {
  std::uint16_t port;
  unsigned pin;
};
inline constexpr std::array serial_places{SerialPlace{0x3f8, 4}, SerialPlace{0x2f8, 3}};
inline constexpr unsigned power_pin = 10;  // the generic event device's

inline constexpr std::uint64_t local_apic_address = 0xfee0'0000;

// Low memory, as the boot loader uses it. Below 640 KiB is RAM; what is in it is the kernel's
// to keep or overwrite. The ACPI tables lie in a part that the memory map calls reserved.
namespace low {
inline constexpr std::uint64_t gdt = 0x500, start_info = 0x6000, boot_parameters = 0x7000,
                               stack = 0x8ff0, page_tables = 0x9000, setup_data = 0x1'0000,
                               command_line = 0x2'0000, ram_end = 0x9'fc00, acpi = 0xe'0000,
                               acpi_end = 0xf'fff0, reset_vector = acpi_end, end = 0x10'0000;
inline constexpr std::uint64_t command_line_max = 0x1'0000;
}  // namespace low

struct Platform {
  unsigned cpus = 1;
  MemoryWindow high_window;  // for 64-bit BARs
  // PCI buses that are there. A kernel looks into every slot of every bus that it is told of and
  // found no bridge to, so it is told of no more.
  unsigned buses = 1;
  unsigned cpus_most = 0;     // with those that may be added; 0: none
  unsigned memory_slots = 0;  // for memory that may be added
};

inline constexpr unsigned cpus_max = 64;
inline constexpr unsigned memory_slots_max = GuestRam::slots_max;

// The window for 64-bit BARs: above all RAM, and below what a processor with that many physical
// address bits can reach. Fails where there is no room.
[[nodiscard]] base::Result<MemoryWindow> choose_high_window(const GuestRam& ram,
                                                            unsigned physical_bits);

}  // namespace millrace::vmm

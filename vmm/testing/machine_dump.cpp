#include "vmm/testing/machine_dump.hpp"

#include <array>
#include <cstdio>
#include <cstring>

#include "base/check.hpp"
#include "vmm/acpi.hpp"
#include "vmm/boot_parts.hpp"
#include "vmm/hotplug_ports.hpp"
#include "vmm/ioapic.hpp"
#include "vmm/power.hpp"
#include "vmm/testing/cpuid_dump.hpp"
#include "vmm/testing/fake_backend.hpp"
#include "vmm/testing/fake_machine.hpp"
#include "vmm/virtio_pci.hpp"

namespace millrace::vmm::testing {

namespace {

constexpr MemoryWindow usual_window{0x8'0000'0000, 0x10'0000'0000};
constexpr unsigned hotplug_slots = 8;  // as many as --hotplug-slots gives by itself

std::string line(const char* format, auto... values) {
  std::array<char, 200> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  return std::string{text.data()} + "\n";
}

std::string hex(const std::string& bytes) {
  constexpr std::size_t in_line = 16;
  std::string text;
  for (std::size_t at = 0; at < bytes.size(); at += in_line) {
    std::array<char, 24> piece{};
    std::snprintf(piece.data(), piece.size(), "%04zx:", at);
    text += piece.data();
    for (std::size_t i = at; i < std::min(at + in_line, bytes.size()); ++i) {
      std::snprintf(piece.data(), piece.size(), " %02x", static_cast<unsigned char>(bytes[i]));
      text += piece.data();
    }
    text += "\n";
  }
  return text;
}

std::string dump_memory(std::uint64_t mebibytes) {
  const auto ram = GuestRam::make({.bytes = mebibytes << 20});
  CHECK(ram.has_value());
  auto text = line("== memory map of %llu MiB", static_cast<unsigned long long>(mebibytes));
  for (const auto& entry : make_memory_map(*ram)) {
    text += line("%012llx-%012llx type %u", static_cast<unsigned long long>(entry.address),
                 static_cast<unsigned long long>(entry.address + entry.size - 1), entry.type);
  }
  const auto window = choose_high_window(*ram, 48);
  CHECK(window.has_value());
  return text + line("%012llx-%012llx devices", static_cast<unsigned long long>(window->start),
                     static_cast<unsigned long long>(window->start + window->size - 1));
}

std::string dump_places() {
  std::string text = "== ports and pins\n";
  for (const auto& place : serial_places) {
    text += line("%04x serial port, pin %u", place.port, place.pin);
  }
  text += line("%04x power, pin %u", PowerPorts::port, power_pin);
  text += line("%04x reset by keyboard", KeyboardReset::port);
  text += line("%04x panic", PanicPort::port);
  text += line("%04x hot plug", HotplugPorts::port);
  text += line("%04x PCI configuration", PciRoot::port);
  text += line("%08llx PCI configuration, room for %u buses",
               static_cast<unsigned long long>(PciRoot::ecam_address), pci_layout::buses_max);
  text += line("%08llx IOAPIC", static_cast<unsigned long long>(Ioapic::base_address));
  return text + line("%08llx local APICs", static_cast<unsigned long long>(local_apic_address));
}

// From table to table: they lie one after the other, from a multiple of 16 to the next.
std::string dump_acpi(const Platform& platform) {
  const auto image = make_acpi(platform);
  CHECK(image.has_value());
  auto text = line("== ACPI tables at %llx: %u vCPUs of %u, %u slots for memory",
                   static_cast<unsigned long long>(image->address), platform.cpus,
                   std::max(platform.cpus, platform.cpus_most), platform.memory_slots);
  constexpr std::size_t first_table = 64, alignment = 16, rsdp_size = 36;
  text += "RSDP\n" + hex(image->bytes.substr(0, rsdp_size));
  for (std::size_t at = first_table; at < image->bytes.size();) {
    std::uint32_t size = 0;
    std::memcpy(&size, image->bytes.data() + at + 4, sizeof size);
    CHECK(size != 0);
    text += image->bytes.substr(at, 4) + line(" at %zx", at) + hex(image->bytes.substr(at, size));
    at = (at + size + alignment - 1) / alignment * alignment;
  }
  return text;
}

std::unique_ptr<PciFunction> make_function(bool net, FakeInterrupts& interrupts,
                                           FakeDoorbells& doorbells) {
  auto backend = std::make_unique<FakeBackend>(net ? 2 : 1);
  // VIRTIO_F_VERSION_1, RING_PACKED, EVENT_IDX, INDIRECT_DESC: what a back-end has, is passed on.
  backend->offered = 1ull << 32 | 1ull << 34 | 1ull << 29 | 1ull << 28;
  auto parts = VirtioPci::make_parts(std::move(backend), interrupts);
  CHECK(parts.has_value());
  return std::make_unique<VirtioPci>(std::uint8_t{net ? std::uint8_t{1} : std::uint8_t{2}},
                                     net ? 0x020000u : 0x018000u, *std::move(parts), doorbells);
}

// Every function that configuration space shows, to the end of its capabilities.
std::string dump_functions(Bus& memory) {
  std::string text =
      "== PCI functions: a NIC of two queues, a disk of one, one more behind the first of 8 "
      "ports\n";
  constexpr std::size_t shown = 256;
  for (std::uint32_t number = 0; number < pci_layout::buses_max << 8; ++number) {
    std::string config(shown, '\0');
    for (std::size_t at = 0; at < shown; at += 4) {
      memory.read(PciRoot::ecam_address + (std::uint64_t{number} << 12) + at,
                  std::as_writable_bytes(std::span{config}).subspan(at, 4));
    }
    if (config.starts_with("\xff\xff")) continue;
    text += line("%02x:%02x.%x", number >> 8, number >> 3 & 31, number & 7) + hex(config);
  }
  return text;
}

std::string dump_pci() {
  FakeInterrupts interrupts;
  FakeDoorbells doorbells;
  Bus ports, memory;
  PciRoot root{ports, memory, usual_window, [] {}};
  CHECK(root.start(hotplug_slots, interrupts, [] {}).has_value());
  CHECK(root.plug(1, make_function(true, interrupts, doorbells)).has_value());
  CHECK(root.plug(2, make_function(false, interrupts, doorbells)).has_value());
  CHECK(root.plug_behind(0, make_function(false, interrupts, doorbells), false).has_value());
  return dump_functions(memory);
}

}  // namespace

std::string dump_machine() {
  auto text = dump_memory(256) + dump_memory(4096) + dump_places();
  text += dump_acpi({.cpus = 1, .high_window = usual_window, .buses = 1 + hotplug_slots});
  text += dump_acpi({.cpus = 2,
                     .high_window = usual_window,
                     .buses = 1 + hotplug_slots,
                     .cpus_most = 4,
                     .memory_slots = 2});
  text += dump_pci();
  return text + dump_processors();
}

}  // namespace millrace::vmm::testing

#include "vmm/acpi_hotplug.hpp"

#include <array>
#include <cstdio>

#include "vmm/aml.hpp"
#include "vmm/hotplug_ports.hpp"
#include "vmm/power.hpp"

namespace millrace::vmm {

namespace {

using aml::join;
using aml::name;

constexpr unsigned device_check = 1, present = 0xf;

std::string numbered(char letter, unsigned number) {
  std::array<char, 8> text{};
  std::snprintf(text.data(), text.size(), "%c%03X", letter, number);
  return text.data();
}

std::string cpu_path(unsigned cpu) {
  return "\\_SB.CPUS." + numbered('C', cpu);
}

std::string memory_path(unsigned slot) {
  return "\\_SB." + numbered('M', slot);
}

// _STA: there, or not yet; CHEK: tells the guest of it, once.
std::string comes_later(const std::string& path, const std::string& there) {
  const auto once = aml::both(there, aml::negated(aml::path("SAID")));
  return join({
      name("SAID", aml::integer(0)),
      aml::method("_STA", 0,
                  aml::if_then(there, aml::give_back(aml::integer(present))) +
                      aml::give_back(aml::integer(0))),
      aml::method("CHEK", 0,
                  aml::if_then(once, aml::store(aml::integer(1), aml::path("SAID")) +
                                         aml::notify(aml::path(path), device_check)),
                  true),
  });
}

// A processor. Its _MAT is the MADT's entry as it is once the processor is there (§5.2.12.2).
std::string processor(unsigned cpu, bool from_start) {
  const std::array<char, 8> entry{0, 8, static_cast<char>(cpu), static_cast<char>(cpu), 1, 0, 0, 0};
  auto content = join({
      name("_HID", aml::string("ACPI0007")),
      name("_UID", aml::integer(cpu)),
      name("_MAT", aml::buffer({entry.data(), entry.size()})),
  });
  if (!from_start) {
    content += comes_later(cpu_path(cpu), aml::less(aml::integer(cpu), aml::path("CPUN")));
  }
  return aml::device(numbered('C', cpu), content);
}

std::string processors(const Platform& platform) {
  if (platform.cpus_most <= platform.cpus) return {};
  auto content = join({
      name("_HID", aml::string("ACPI0010")),
      name("_UID", aml::integer(0)),
      aml::port_field("CPUR", "CPUN", HotplugPorts::port + HotplugPorts::cpus),
  });
  for (unsigned cpu = 0; cpu < platform.cpus_most; ++cpu) {
    content += processor(cpu, cpu < platform.cpus);
  }
  return aml::device("CPUS", content);
}

// A place for memory; its ports say where it lies and how large it is, in units.
std::string memory_device(unsigned slot) {
  constexpr unsigned start_at = 14, last_at = 22, size_at = 38;  // of the descriptor, §6.4.3.5.1
  const auto unit = aml::integer(HotplugPorts::unit_shift);
  const auto start = aml::path("MINA"), last = aml::path("MAXA"), size = aml::path("LENA");
  const auto resources = join({
      name("RSRC", aml::resources({aml::wide_memory(0, 1)})),
      aml::wide_field(aml::path("RSRC"), start_at, "MINA"),
      aml::wide_field(aml::path("RSRC"), last_at, "MAXA"),
      aml::wide_field(aml::path("RSRC"), size_at, "LENA"),
      aml::shift_left(aml::path("STRT"), unit, start),
      aml::shift_left(aml::path("SIZE"), unit, size),
      aml::add(start, size, last),
      aml::subtract(last, aml::integer(1), last),
      aml::give_back(aml::path("RSRC")),
  });
  const auto ports = HotplugPorts::port + HotplugPorts::memory + HotplugPorts::slot_size * slot;
  return aml::device(
      numbered('M', slot),
      join({
          name("_HID", aml::eisa_id("PNP0C80")),
          name("_UID", aml::integer(slot)),
          aml::port_words("MEMR", static_cast<std::uint16_t>(ports), {"STRT", "SIZE"}),
          comes_later(memory_path(slot), aml::less(aml::integer(0), aml::path("SIZE"))),
          aml::method("_CRS", 0, resources, true),
      }));
}

}  // namespace

std::string hotplug_devices(const Platform& platform) {
  auto devices = processors(platform);
  for (unsigned slot = 0; slot < platform.memory_slots; ++slot) devices += memory_device(slot);
  return devices;
}

std::string hotplug_events(const Platform& platform) {
  const auto when = [](unsigned event, const std::string& content) {
    if (content.empty()) return std::string{};
    return aml::if_then(aml::bit_and(aml::local(0), aml::integer(event)), content);
  };
  std::string cpus, memory;
  for (unsigned cpu = platform.cpus; cpu < platform.cpus_most; ++cpu) {
    cpus += aml::path(cpu_path(cpu) + ".CHEK");
  }
  for (unsigned slot = 0; slot < platform.memory_slots; ++slot) {
    memory += aml::path(memory_path(slot) + ".CHEK");
  }
  return when(PowerPorts::event_cpus, cpus) + when(PowerPorts::event_memory, memory);
}

}  // namespace millrace::vmm

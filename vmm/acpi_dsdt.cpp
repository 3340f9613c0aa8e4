#include "vmm/acpi.hpp"
#include "vmm/acpi_hotplug.hpp"
#include "vmm/aml.hpp"
#include "vmm/power.hpp"

namespace millrace::vmm {

namespace {

using aml::join;
using aml::name;

// The PCI root. _OSC gives the guest every PCI Express feature that it asks for: nobody else here
// uses them (PCI Firmware 3.3 §4.5.1).
std::string pci_root(const Platform& platform) {
  const auto& high = platform.high_window;
  const auto windows = aml::resources({
      aml::bus_window(0, static_cast<std::uint16_t>(platform.buses - 1)),
      aml::port_range(PciRoot::port, PciRoot::port_size),
      aml::port_window(0, PciRoot::port - 1),
      aml::port_window(PciRoot::port + PciRoot::port_size, 0xffff),
      aml::memory_window(PciRoot::low_window.start, PciRoot::low_window.size),
      aml::wide_memory_window(high.start, high.size),
  });
  return aml::device("PCI0", join({
                                 name("_HID", aml::eisa_id("PNP0A08")),
                                 name("_CID", aml::eisa_id("PNP0A03")),
                                 name("_SEG", aml::integer(0)),
                                 name("_BBN", aml::integer(0)),
                                 name("_UID", aml::integer(0)),
                                 name("_CRS", windows),
                                 aml::method("_OSC", 4, aml::give_back(aml::argument(3))),
                             }));
}

// Kernels distrust a configuration space in memory that no device claims.
std::string ecam_owner(const Platform& platform) {
  const auto size =
      aml::resources({aml::fixed_memory(PciRoot::ecam_address, platform.buses << 20)});
  return aml::device("ECAM", join({
                                 name("_HID", aml::eisa_id("PNP0C02")),
                                 name("_UID", aml::integer(0)),
                                 name("_CRS", size),
                             }));
}

std::string serial(unsigned index) {
  const auto& place = serial_places[index];
  const auto resources =
      aml::resources({aml::port_range(place.port, 8), aml::edge_interrupt(place.pin)});
  return aml::device("COM" + std::to_string(index + 1), join({
                                                            name("_HID", aml::eisa_id("PNP0501")),
                                                            name("_UID", aml::integer(index + 1)),
                                                            name("_CRS", resources),
                                                        }));
}

// The power button, and the device whose interrupt says that something happened (§5.6.9).
std::string power_button(const Platform& platform) {
  const auto button = aml::device("PWRB", join({
                                              name("_HID", aml::eisa_id("PNP0C0C")),
                                              name("_UID", aml::integer(0)),
                                          }));
  const auto event = join({
      aml::store(aml::path("EVTS"), aml::local(0)),
      aml::if_then(aml::bit_and(aml::local(0), aml::integer(PowerPorts::event_power_button)),
                   aml::notify(aml::path("\\_SB.PWRB"), 0x80)),
      hotplug_events(platform),
  });
  const auto generic = aml::device(
      "GED0", join({
                  name("_HID", aml::string("ACPI0013")),
                  name("_UID", aml::integer(0)),
                  name("_CRS", aml::resources({aml::edge_interrupt(power_pin)})),
                  aml::port_field("EVTR", "EVTS", PowerPorts::port + PowerPorts::events),
                  aml::method("_EVT", 1, event, true),
              }));
  return button + generic;
}

std::string panic_port() {
  return aml::device("PEVT",
                     join({
                         name("_HID", aml::string("QEMU0001")),
                         name("_UID", aml::integer(0)),
                         name("_STA", aml::integer(0xf)),
                         name("_CRS", aml::resources({aml::port_range(PanicPort::port, 1)})),
                     }));
}

}  // namespace

std::string make_dsdt_body(const Platform& platform) {
  const auto off = PowerPorts::sleep_type_off;
  return join({
      aml::scope("\\_SB",
                 join({pci_root(platform), ecam_owner(platform), serial(0), serial(1),
                       power_button(platform), panic_port(), hotplug_devices(platform)})),
      name("\\_S5",
           aml::package({aml::integer(off), aml::integer(off), aml::integer(0), aml::integer(0)})),
  });
}

}  // namespace millrace::vmm

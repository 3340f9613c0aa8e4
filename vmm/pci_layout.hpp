// Where a guest finds which device, the same in every version of this machine:
//
//   00:00.0             the host bridge
//   00:01.0 to 00:17.0  the first 23 other devices of the command line, in its order
//   00:18.0 to 00:1f.7  root ports 0 to 63: port n is function n % 8 of slot 24 + n / 8, and leads
//                       to bus n + 1, where its device is 00.0
//
// Of the command line's devices those from the 24th on, and those that are said to be removable,
// are behind ports 0 and up, in its order; the ports after those are empty, for devices that are
// plugged in later. What is behind a port can be unplugged. A device on bus 0 costs a booting
// kernel less than one behind a port, which is two functions.
#pragma once

#include <algorithm>

namespace millrace::vmm::pci_layout {

inline constexpr unsigned direct_slots = 23;  // slots 1 to 23
inline constexpr unsigned port_slots_at = 24, ports_per_slot = 8, ports_max = 64;
inline constexpr unsigned devices_max = direct_slots + ports_max;
inline constexpr unsigned buses_max = 1 + ports_max;

// A device's place: 1 to 23 is a slot of bus 0, 24 to 87 is behind port 0 to 63.
inline constexpr unsigned first_place = 1, first_port_place = 1 + direct_slots;

[[nodiscard]] constexpr bool is_behind_port(unsigned place) {
  return place >= first_port_place;
}
[[nodiscard]] constexpr unsigned port_of(unsigned place) {
  return place - first_port_place;
}

// Ports for so many devices from the start, some of which are removable, and so many more later;
// more than ports_max: they do not fit.
[[nodiscard]] constexpr unsigned ports_needed(unsigned devices, unsigned removable,
                                              unsigned hotplug_slots) {
  const auto others = devices - removable;
  return others - std::min(others, direct_slots) + removable + hotplug_slots;
}

// Device and function number of a port on bus 0.
[[nodiscard]] constexpr unsigned port_devfn(unsigned port) {
  return (port_slots_at + port / ports_per_slot) << 3 | port % ports_per_slot;
}

}  // namespace millrace::vmm::pci_layout

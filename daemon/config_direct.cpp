// Ports that are direct, against the uplinks that they name.
#include <algorithm>
#include <map>

#include "daemon/config.hpp"

namespace millrace::daemon {

std::string direct_conflict(const GuestPort& port, const UplinkEntry& entry) {
  const auto& uplink = entry.uplink;
  const auto begin = "direct = " + uplink.name + ": ";
  if (!uplink.pci && !entry.pf) {
    return begin + "that is no PCI function; give the uplink pci or pf";
  }
  if (uplink.queues != 1) {
    return begin + "the uplink has " + std::to_string(uplink.queues) + " queues; give it one";
  }
  if (!entry.standby.empty()) {
    return begin + "the uplink has a standby, whose guests go elsewhere with it; leave that out";
  }
  if (uplink.port.vepa) {
    return begin + "the uplink has vepa, by which guests reach each other; leave that out";
  }
  if (uplink.gro) {
    return begin + "the uplink has gro, which joins what the switch gets; leave that out";
  }
  if (uplink.mac && uplink.mac != port.device.mac) {
    return begin + "the uplink's mac is another one than the port's; give both the same";
  }
  return {};
}

void join_direct(Config& config, Problems& problems) {
  std::map<std::string, std::string> first_of;
  for (const auto& port : config.ports) {
    if (port.direct.empty()) continue;
    const auto& name = port.device.name;
    const auto title = "[[port]] " + name + ": ";
    const auto found = std::ranges::find(config.uplinks, port.direct,
                                         [](const UplinkEntry& each) { return each.uplink.name; });
    if (found == config.uplinks.end()) {
      problems.add(port.at, title + "direct " + port.direct +
                                " is not there; add an [[uplink]] of that name");
      continue;
    }
    auto line = direct_conflict(port, *found);
    const auto [first, fresh] = first_of.try_emplace(port.direct, name);
    const auto standby_of = std::ranges::find(config.uplinks, port.direct, &UplinkEntry::standby);
    if (line.empty() && !fresh) {
      line = "direct = " + port.direct + ": the uplink serves port " + first->second +
             " alone; give each port its own";
    }
    if (line.empty() && standby_of != config.uplinks.end()) {
      line = "direct = " + port.direct + ": the uplink is the standby of " +
             standby_of->uplink.name + ", and serves all ports then; give another";
    }
    if (!line.empty()) problems.add(port.at, title + line);
    found->uplink.direct = found->uplink.zero_copy = true;
  }
}

}  // namespace millrace::daemon

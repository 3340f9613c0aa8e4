// Reads [[port]] and [[uplink]].
#include <algorithm>
#include <map>

#include "base/mac.hpp"
#include "daemon/config_common.hpp"

namespace millrace::daemon {

namespace {

constexpr unsigned addresses_of_a_port_max = 1u << 20;

// One station's address.
std::optional<base::Mac> read_station(Section& section) {
  const auto* value = section.find("mac");
  if (value == nullptr) return std::nullopt;
  std::string text;
  section.text("mac", text);
  if (value->text() == nullptr) return std::nullopt;
  const auto mac = base::parse_mac(text);
  if (!mac) {
    section.problem("mac", "mac is \"" + text + "\"; give six bytes like \"52:54:00:00:00:01\"");
    return std::nullopt;
  }
  if (((*mac)[0] & 1) != 0 || *mac == vswitch::Mac{}) {
    section.problem("mac", "mac " + text +
                               " is not one station's address; give a unicast "
                               "address like \"52:54:00:00:00:01\"");
    return std::nullopt;
  }
  return mac;
}

// The name of an uplink, which is there or will be.
void read_uplink_name(Section& section, const char* key, std::string& name) {
  section.text(key, name);
  const auto* value = section.find(key);
  if (value != nullptr && value->text() != nullptr && name.empty()) {
    section.problem(key, std::string{key} + " is empty; give the name of an [[uplink]]");
  }
}

// A port whose queues are where its uplink's are.
void read_direct(Section& section, GuestPort& port) {
  read_uplink_name(section, "direct", port.direct);
  if (port.direct.empty()) return;
  port.device.port.alone = true;
  if (port.device.pairs != 1) {
    section.problem("queues", "a port that is direct has one queue pair; leave queues out");
  }
  if (!port.reactors.empty()) {
    section.problem("reactors",
                    "the queues of a port that is direct are where its uplink is; leave reactors "
                    "out");
  }
}

// Either `device`, one of DPDK's own, or `pci`, a function.
void read_lender(Section& section, UplinkEntry& entry) {
  for (const char* key : {"device", "pci"}) {
    if (section.has(key)) {
      section.problem(key, std::string{"both pf and "} + key + " are given; give one of them");
    }
  }
  std::string text;
  section.text("pf", text);
  const auto* value = section.find("pf");
  if (value == nullptr || value->text() == nullptr) return;
  entry.pf = sriov::parse_pci_address(text);
  if (entry.pf) return;
  section.problem("pf", "pf is \"" + text +
                            "\"; give the whole address of a physical function that has a [[pf]], "
                            "as lspci -D does: \"0000:01:00.0\"");
}

void read_uplink_device(Section& section, UplinkEntry& entry) {
  if (section.has("pf")) return read_lender(section, entry);
  auto& uplink = entry.uplink;
  uplink.pci = section.has("pci");
  const char* const key = uplink.pci ? "pci" : "device";
  if (uplink.pci && section.has("device")) {
    section.problem("device", "both pci and device are given; give one of them");
  }
  if (!uplink.pci) section.require(key, "\"net_tap0,iface=mill0\", or pci = \"0000:01:00.0\"");
  section.text(key, uplink.device);
  const auto* value = section.find(key);
  if (value == nullptr || value->text() == nullptr) return;
  if (!uplink.pci && uplink.device.empty()) {
    section.problem(key, "device is empty; give a DPDK device like \"net_tap0,iface=mill0\"");
  }
  if (!uplink.pci) return;
  const auto address = sriov::parse_pci_address(uplink.device);
  if (!address) {
    return section.problem(key, "pci is \"" + uplink.device +
                                    "\"; give a function's whole address, as lspci -D does: "
                                    "\"0000:01:00.0\"");
  }
  uplink.device = sriov::format(*address);
}

}  // namespace

GuestPort read_port(const Value& table, const std::string& title, Problems& problems) {
  GuestPort port;
  port.at = table.at();
  auto& device = port.device;
  Section section{members(table, title, problems), table.at(), titled(table, title), problems};
  read_name(section, device.name);
  read_server(section, port.server);
  port.socket_at = section.at("socket");
  section.flag("control_queue", device.control_queue);
  // The index in KICK, CALL and ERR has 8 bits: 256 queues, the control queue among them.
  const unsigned pairs_max = device.control_queue ? net::pairs_max - 1 : net::pairs_max;
  section.number("queues", device.pairs, 1, pairs_max);
  device.mac = read_station(section);
  if (device.mac) device.port.static_macs = {*device.mac};
  section.number("mtu", device.mtu, 68, 65'535);
  read_reactor_list(section, port.reactors);
  port.reactors_at = section.at("reactors");
  read_uplink_name(section, "follow_uplink", port.follow_uplink);
  device.link_changes = !port.follow_uplink.empty();
  read_direct(section, port);
  read_switch_side(section, device.port);
  section.number("addresses_max", device.port.addresses_max, 1, addresses_of_a_port_max);
  section.flag("offloads", device.offloads);
  section.flag("packed", device.packed);
  section.flag("in_order", device.in_order);
  section.flag("ring_reset", device.ring_reset);
  section.flag("rss", device.rss);
  section.flag("hash_report", device.hash_report);
  section.flag("coalescing", device.coalescing);
  device.port.name = device.name;
  section.finish();
  return port;
}

UplinkEntry read_uplink(const Value& table, const std::string& title, Problems& problems) {
  UplinkEntry entry;
  entry.at = table.at();
  auto& uplink = entry.uplink;
  Section section{members(table, title, problems), table.at(), titled(table, title), problems};
  read_name(section, uplink.name);
  const bool bond = section.has("bond") || section.has("members");
  bond ? read_bond(section, entry) : read_uplink_device(section, entry);
  section.number("queues", uplink.queues, 1, vswitch::Fabric::reactors_max);
  section.number("mtu", uplink.mtu, 68, 9216);
  if (!bond) uplink.mac = read_station(section);
  if (!bond) section.flag("zero_copy", uplink.zero_copy);
  if (uplink.zero_copy && !uplink.pci && !entry.pf) {
    section.problem("zero_copy", "zero_copy needs a PCI function: give pci or pf, or leave it out");
  }
  section.flag("gro", uplink.gro);
  section.flag("direct", uplink.direct);
  if (uplink.direct && !uplink.pci && !entry.pf) {
    section.problem("direct", "direct needs a PCI function: give pci or pf, or leave it out");
  }
  uplink.zero_copy = uplink.zero_copy || uplink.direct;
  if (!bond) read_uplink_name(section, "standby", entry.standby);
  if (!entry.standby.empty() && entry.standby == uplink.name) {
    section.problem("standby", "standby is the uplink itself; give the name of another");
  }
  // An uplink leads to a whole network: its share of the table is the table.
  uplink.port.addresses_max = 65'536;
  read_switch_side(section, uplink.port);
  section.flag("vepa", uplink.port.vepa);
  uplink.port.name = uplink.name;
  uplink.port.uplink = true;
  section.finish();
  return entry;
}

std::string vepa_conflict(const UplinkEntry& entry, const UplinkEntry& other) {
  const bool its = entry.uplink.port.vepa, others = other.uplink.port.vepa;
  const bool pair = other.uplink.name == entry.standby || other.standby == entry.uplink.name;
  if (pair && its != others) {
    return "it and " + other.uplink.name +
           " carry in each other's place, and one has vepa; give it to both or to none";
  }
  if (pair || !its || !others) return {};
  return other.uplink.name +
         " has vepa already, and guests reach each other by one uplink; leave it out";
}

void check_uplink_names(const Config& config, Problems& problems) {
  const auto find = [&](const std::string& name) {
    return std::ranges::find(config.uplinks, name,
                             [](const UplinkEntry& each) { return each.uplink.name; });
  };
  std::map<std::string, std::string> first_of;
  for (const auto& entry : config.uplinks) {
    if (entry.standby.empty() || entry.standby == entry.uplink.name) continue;
    const auto title = "[[uplink]] " + entry.uplink.name;
    const auto standby = find(entry.standby);
    const auto begin = title + ": standby " + entry.standby;
    if (standby == config.uplinks.end()) {
      problems.add(entry.at, begin + " is not there; add an [[uplink]] of that name");
    } else if (!standby->standby.empty()) {
      problems.add(entry.at, begin + " has a standby itself; give one that has none");
    } else if (entry.pf && entry.pf == standby->pf) {
      problems.add(entry.at, begin +
                                 " has a VF of the same PF; leave it out: a VF that is lost is "
                                 "replaced by another one");
    } else if (const auto [first, fresh] = first_of.try_emplace(entry.standby, entry.uplink.name);
               !fresh) {
      problems.add(entry.at, begin + " is already the one of " + first->second +
                                 "; give each uplink its own");
    }
  }
  check_bonds(config, problems);
  for (auto entry = config.uplinks.begin(); entry != config.uplinks.end(); ++entry) {
    for (auto other = config.uplinks.begin(); other != entry; ++other) {
      const auto why = vepa_conflict(*entry, *other);
      if (!why.empty()) problems.add(entry->at, "[[uplink]] " + entry->uplink.name + ": " + why);
    }
  }
  for (const auto& port : config.ports) {
    if (port.follow_uplink.empty() || find(port.follow_uplink) != config.uplinks.end()) continue;
    problems.add(port.at, "[[port]] " + port.device.name + ": follow_uplink " + port.follow_uplink +
                              " is not there; add an [[uplink]] of that name");
  }
}

}  // namespace millrace::daemon

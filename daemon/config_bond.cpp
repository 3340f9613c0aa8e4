// Reads and checks bonds: [[uplink]]s whose devices are those of others, their members.
#include <algorithm>
#include <map>

#include "daemon/config_common.hpp"

namespace millrace::daemon {

namespace {

using vswitch::BondMode;

constexpr std::size_t members_min = 2, members_max = 8;
constexpr const char* members_example = "[\"wan0\", \"wan1\"]";

// Why those members cannot make a bond, as the end of a line; empty: they can.
std::string wrong_with(const std::vector<std::string>& members, const std::string& name) {
  const std::string give = std::string{"; give them like "} + members_example;
  if (members.size() < members_min) {
    return "members are " + std::to_string(members.size()) + ", and a bond has two or more" + give;
  }
  if (members.size() > members_max) {
    return "members are " + std::to_string(members.size()) + ", and a bond has eight at most" +
           give;
  }
  for (const auto& member : members) {
    if (member.empty()) return "members has an empty name" + give;
    if (member == name) return "the bond is a member of itself; give the names of others";
    if (std::ranges::count(members, member) > 1) {
      return "member " + member + " is there twice; give each once";
    }
  }
  return {};
}

void read_members(Section& section, UplinkEntry& entry) {
  section.require("members", members_example);
  const auto* value = section.find("members");
  if (value == nullptr) return;
  const auto* list = value->array();
  const bool of_names =
      list != nullptr && std::ranges::all_of(*list, [](const auto& v) { return v.text(); });
  if (!of_names) {
    return section.problem(
        "members", std::string{"members is no list of names; give them like "} + members_example);
  }
  for (const auto& each : *list) entry.members.push_back(*each.text());
  entry.uplink.members = static_cast<unsigned>(entry.members.size());
  const auto wrong = wrong_with(entry.members, entry.uplink.name);
  if (!wrong.empty()) section.problem("members", wrong);
}

}  // namespace

void read_bond(Section& section, UplinkEntry& entry) {
  auto& uplink = entry.uplink;
  for (const char* key : {"device", "pci", "pf", "mac", "zero_copy", "standby"}) {
    if (!section.has(key)) continue;
    section.problem(key, std::string{key} + " is given and bond too: a bond has its members' " +
                             "devices, copies, and hears everybody; leave it out");
  }
  section.require("bond", "\"802.3ad\"");
  section.choice("bond", uplink.bond,
                 {{"active-backup", BondMode::active_backup},
                  {"balance-xor", BondMode::balance_xor},
                  {"802.3ad", BondMode::lacp}});
  read_members(section, entry);
  uplink.device = "net_bonding_" + uplink.name.substr(0, 48);
}

std::string unfit_as_member(const UplinkEntry& entry) {
  const auto& uplink = entry.uplink;
  const auto& port = uplink.port;
  if (uplink.bond != BondMode::none) return "is a bond itself; give uplinks with a device";
  if (!entry.standby.empty()) return "has a standby; leave that out: the bond's others are there";
  if (uplink.mac) return "has mac, and a bond hears everybody; leave mac out";
  if (uplink.direct) return "is direct, and serves one port alone; give another";
  if (uplink.zero_copy) return "has zero_copy, and a bond copies; leave zero_copy out";
  if (uplink.queues != 1 || uplink.mtu != 0 || uplink.gro) {
    return "has queues, mtu or gro; give them to the bond";
  }
  if (port.access_vlan != 0 || !port.trunk.empty() || port.isolated || port.vepa) {
    return "has vlan, trunk, isolated or vepa, and no port of its own; give them to the bond";
  }
  return {};
}

void check_bonds(const Config& config, Problems& problems) {
  std::map<std::string, std::string> bond_of;
  for (const auto& bond : config.uplinks) {
    const auto title = "[[uplink]] " + bond.uplink.name + ": member ";
    for (const auto& name : bond.members) {
      if (name == bond.uplink.name) continue;  // noted when it was read
      const auto begin = title + name + " ";
      const auto found = std::ranges::find(
          config.uplinks, name, [](const UplinkEntry& each) { return each.uplink.name; });
      const auto [first, fresh] = bond_of.try_emplace(name, bond.uplink.name);
      if (found == config.uplinks.end()) {
        problems.add(bond.at, begin + "is not there; add an [[uplink]] of that name");
      } else if (!fresh && first->second != bond.uplink.name) {
        problems.add(bond.at, begin + "is one of " + first->second + " already; give each once");
      } else if (const auto why = unfit_as_member(*found); !why.empty()) {
        problems.add(found->at, begin + why);
      }
    }
  }
  for (const auto& entry : config.uplinks) {
    const auto begin = "[[uplink]] " + entry.uplink.name + ": standby " + entry.standby;
    const auto found = std::ranges::find(config.uplinks, entry.standby,
                                         [](const UplinkEntry& each) { return each.uplink.name; });
    if (entry.standby.empty() || found == config.uplinks.end()) continue;
    if (!found->members.empty()) {
      problems.add(entry.at, begin + " is a bond; make this one a member of it");
    } else if (bond_of.contains(entry.standby)) {
      problems.add(entry.at, begin + " is a member of " + bond_of.at(entry.standby) +
                                 "; give one that is none");
    }
  }
}

void sort_uplinks(std::vector<UplinkEntry>& uplinks) {
  std::ranges::stable_partition(uplinks, [](const auto& each) { return !each.members.empty(); });
}

}  // namespace millrace::daemon

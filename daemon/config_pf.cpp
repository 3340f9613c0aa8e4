// Reads [[pf]]: a physical function and what its virtual functions shall be.
#include <algorithm>
#include <map>

#include "base/mac.hpp"
#include "daemon/config_common.hpp"

namespace millrace::daemon {

namespace {

constexpr unsigned vf_index_max = 65'534;  // TotalVFs has 16 bits
constexpr unsigned rate_max_mbit = 4'000'000;

void read_mac(Section& section, sriov::VfValues& values) {
  std::string text;
  section.text("mac", text);
  const auto* value = section.find("mac");
  if (value == nullptr || value->text() == nullptr) return;
  const auto mac = base::parse_mac(text);
  if (!mac || ((*mac)[0] & 1) != 0 || *mac == base::Mac{}) {
    return section.problem("mac", "mac is \"" + text +
                                      "\"; give one station's address like "
                                      "\"52:54:00:00:00:01\"");
  }
  values.mac = *mac;
}

void read_vlan(Section& section, sriov::VfValues& values) {
  sriov::Vlan vlan;
  section.number("vlan", vlan.id, 0, 4094);
  section.number("qos", vlan.qos, 0, 7);
  section.choice<bool>("vlan_protocol", vlan.service_tag, {{"802.1Q", false}, {"802.1ad", true}});
  for (const char* key : {"qos", "vlan_protocol"}) {
    if (section.has(key) && !section.has("vlan")) {
      section.problem(key, std::string{key} + " is of a VLAN, and there is none; give vlan, too");
    }
  }
  if (section.has("vlan")) values.vlan = vlan;
}

void read_rate(Section& section, sriov::VfValues& values) {
  sriov::Rate rate;
  section.number("min_rate", rate.min, 0, rate_max_mbit);
  section.number("max_rate", rate.max, 0, rate_max_mbit);
  if (rate.max != 0 && rate.min > rate.max) {
    section.problem("min_rate", "min_rate " + std::to_string(rate.min) + " is more than max_rate " +
                                    std::to_string(rate.max));
  }
  if (section.has("min_rate") || section.has("max_rate")) values.rate = rate;
}

template <class Switch>
void read_switch(Section& section, const char* key, std::optional<Switch>& out) {
  Switch value;
  section.flag(key, value.on);
  if (section.has(key)) out = value;
}

}  // namespace

void read_vf_values(Section& section, sriov::VfValues& values) {
  read_mac(section, values);
  read_vlan(section, values);
  read_rate(section, values);
  read_switch(section, "spoof_check", values.spoof_check);
  read_switch(section, "trust", values.trust);
  auto link = sriov::LinkState::automatic;
  section.choice<sriov::LinkState>("link", link,
                                   {{"auto", sriov::LinkState::automatic},
                                    {"on", sriov::LinkState::on},
                                    {"off", sriov::LinkState::off}});
  if (section.has("link")) values.link = link;
}

namespace {

sriov::VfWish read_vf(const Value& table, const std::string& title, Problems& problems) {
  sriov::VfWish out;
  Section section{members(table, title, problems), table.at(), title, problems};
  section.require("index", "0");
  section.number("index", out.index, 0, vf_index_max);
  read_vf_values(section, out.values);
  section.finish();
  return out;
}

void read_functions(Section& section, PfEntry& entry, Problems& problems) {
  const auto* functions = section.find("vf");
  if (functions == nullptr) return;
  if (functions->array() == nullptr) {
    return section.problem(
        "vf", "vf is " + std::string{functions->kind()} + "; begin each function with [[pf.vf]]");
  }
  auto& wish = entry.wish;
  for (const auto& each : *functions->array()) {
    const auto title = section.title() + ": [[pf.vf]]";
    auto vf = read_vf(each, title, problems);
    if (std::ranges::find(wish.functions, vf.index, &sriov::VfWish::index) !=
        wish.functions.end()) {
      problems.add(each.at(), title + ": index " + std::to_string(vf.index) +
                                  " is there twice; give each function one table");
    }
    if (wish.vfs && vf.index >= *wish.vfs) {
      problems.add(each.at(), title + ": there is no index " + std::to_string(vf.index) +
                                  " where vfs is " + std::to_string(*wish.vfs));
    }
    wish.functions.push_back(std::move(vf));
    entry.function_at.push_back(each.at());
  }
}

}  // namespace

PfEntry read_pf(const Value& table, const std::string& title, Problems& problems) {
  PfEntry entry;
  entry.at = table.at();
  auto& wish = entry.wish;
  std::string pci;
  const auto& all = members(table, title, problems);
  for (const auto& member : all) {
    if (member.key == "pci" && member.value.text() != nullptr) pci = *member.value.text();
  }
  const auto address = sriov::parse_pci_address(pci);
  Section section{all, table.at(), address ? title + " " + sriov::format(*address) : title,
                  problems};
  section.require("pci", "\"0000:01:00.0\"");
  section.text("pci", pci);
  if (address) {
    wish.address = *address;
  } else if (section.has("pci") && section.find("pci")->text() != nullptr) {
    section.problem("pci",
                    "pci is \"" + pci + "\"; give a PCI address like \"0000:01:00.0\" (lspci -D)");
  }
  unsigned vfs = 0;
  section.number("vfs", vfs, 0, vf_index_max + 1);
  if (section.has("vfs")) wish.vfs = vfs;
  bool autoprobe = false;
  section.flag("autoprobe", autoprobe);
  if (section.has("autoprobe")) wish.autoprobe = autoprobe;
  // Functions that are made are made for us; those that are adopted keep what they have.
  bool bind = wish.vfs.has_value();
  section.choice<bool>("driver", bind, {{"vfio-pci", true}, {"keep", false}});
  if (bind) wish.driver = "vfio-pci";
  read_functions(section, entry, problems);
  section.finish();
  return entry;
}

void check_functions(const std::vector<PfEntry>& entries, Problems& problems) {
  std::map<sriov::PciAddress, bool> physical;
  std::map<base::Mac, std::string> owners;
  for (const auto& entry : entries) {
    const auto name = sriov::format(entry.wish.address);
    const auto title = "[[pf]] " + name;
    if (!physical.try_emplace(entry.wish.address, true).second) {
      problems.add(entry.at, title + ": this physical function is there twice; make one of them");
    }
    for (std::size_t each = 0; each < entry.wish.functions.size(); ++each) {
      const auto& vf = entry.wish.functions[each];
      if (!vf.values.mac) continue;
      const auto owner = "VF " + std::to_string(vf.index) + " of " + name;
      const auto [earlier, fresh] = owners.try_emplace(*vf.values.mac, owner);
      if (fresh) continue;
      problems.add(entry.function_at[each], title + ": mac " + base::format_mac(*vf.values.mac) +
                                                " of VF " + std::to_string(vf.index) +
                                                " is already the one of " + earlier->second +
                                                "; give each its own");
    }
  }
}

}  // namespace millrace::daemon

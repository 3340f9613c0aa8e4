// Reads and checks [[mirror]].
#include <algorithm>

#include "daemon/config_common.hpp"

namespace millrace::daemon {

namespace {

constexpr const char* from_example = "[\"web0\"], the ports and uplinks that are watched";

// What is wrong with the names, as the end of a line; empty: nothing.
std::string wrong_with_names(const MirrorEntry& mirror) {
  const std::string give = std::string{"; give it like "} + from_example;
  if (mirror.from.empty()) return "from is empty" + give;
  for (const auto& name : mirror.from) {
    if (name.empty()) return "from has an empty name" + give;
    if (name == mirror.to) return "from has " + name + ", its own destination; leave it out";
    if (std::ranges::count(mirror.from, name) > 1) {
      return "from has " + name + " twice; give each once";
    }
  }
  return {};
}

void read_from(Section& section, MirrorEntry& mirror) {
  section.require("from", from_example);
  const auto* value = section.find("from");
  if (value == nullptr) return;
  const auto* list = value->array();
  const bool of_names =
      list != nullptr && std::ranges::all_of(*list, [](const auto& v) { return v.text(); });
  if (!of_names) {
    return section.problem("from",
                           std::string{"from is no list of names; give it like "} + from_example);
  }
  for (const auto& each : *list) mirror.from.push_back(*each.text());
  const auto wrong = wrong_with_names(mirror);
  if (!wrong.empty()) section.problem("from", wrong);
}

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

// What keeps two mirrors from being there together; empty: nothing.
std::string conflict(const MirrorEntry& mirror, const MirrorEntry& other) {
  if (mirror.to == other.to) {
    return "to " + mirror.to + " is the destination of " + other.name +
           " already; name all ports in one mirror";
  }
  if (has(other.from, mirror.to)) {
    return "to " + mirror.to + " is mirrored by " + other.name +
           ", and copies are not copied; give another";
  }
  if (has(mirror.from, other.to)) {
    return "from has " + other.to + ", the destination of " + other.name +
           ", and copies are not copied; leave it out";
  }
  return {};
}

}  // namespace

MirrorEntry read_mirror(const Value& table, const std::string& title, Problems& problems) {
  using vswitch::MirrorDirection;
  MirrorEntry mirror;
  mirror.at = table.at();
  Section section{members(table, title, problems), table.at(), titled(table, title), problems};
  read_name(section, mirror.name);
  section.require("to", "\"monitor\", the port or uplink that gets the copies");
  section.text("to", mirror.to);
  if (const auto* to = section.find("to"); to != nullptr && to->is_empty_text()) {
    section.problem("to", "to is empty; give the name of a port or an uplink");
  }
  read_from(section, mirror);
  section.choice<MirrorDirection>("direction", mirror.direction,
                                  {{"both", MirrorDirection::both},
                                   {"in", MirrorDirection::in},
                                   {"out", MirrorDirection::out}});
  section.finish();
  return mirror;
}

void check_mirrors(const Config& config, Problems& problems) {
  const auto there = [&config](const std::string& name) {
    return std::ranges::any_of(config.ports,
                               [&](const auto& port) { return port.device.name == name; }) ||
           std::ranges::any_of(config.uplinks,
                               [&](const auto& entry) { return entry.uplink.name == name; });
  };
  for (auto mirror = config.mirrors.begin(); mirror != config.mirrors.end(); ++mirror) {
    const auto title = "[[mirror]] " + mirror->name + ": ";
    auto names = mirror->from;
    names.push_back(mirror->to);
    for (const auto& name : names) {
      if (name.empty() || there(name)) continue;
      problems.add(mirror->at, title + "there is no port or uplink " + name +
                                   "; add a [[port]] or an [[uplink]] of that name");
    }
    for (auto other = config.mirrors.begin(); other != mirror; ++other) {
      const auto line = conflict(*mirror, *other);
      if (!line.empty()) problems.add(mirror->at, title + line);
    }
  }
}

}  // namespace millrace::daemon

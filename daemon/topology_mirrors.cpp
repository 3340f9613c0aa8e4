// Topology: mirrors, which are nothing but an arrangement between ports of the switch.
#include <utility>

#include "daemon/topology.hpp"

namespace millrace::daemon {

// The switch's port of a port or an uplink that runs.
base::Result<vswitch::PortId> Topology::running_port(const std::string& name) const {
  auto port = vswitch::no_port;
  bool running = false;
  if (const auto found = ports_.find(name); found != ports_.end()) {
    running = found->second->state == UnitState::running;
    if (running) port = found->second->device->port();
  } else if (const auto uplink = uplinks_.find(name); uplink != uplinks_.end()) {
    const auto& unit = *uplink->second;
    running = unit.state == UnitState::running && unit.uplink != nullptr;
    if (running) port = unit.uplink->port();
    if (running && port == vswitch::no_port) {
      return base::fail(name + " is a member of a bond; give the bond");
    }
  }
  if (!running) return base::fail("there is no port or uplink " + name + "; add it first");
  return port;
}

base::Result<vswitch::MirrorConfig> Topology::resolve(const MirrorEntry& mirror) const {
  vswitch::MirrorConfig out;
  out.direction = mirror.direction;
  for (const auto& name : mirror.from) {
    const auto port = running_port(name);
    if (!port) return base::Unexpected{port.error()};
    out.from.push_back(*port);
  }
  const auto to = running_port(mirror.to);
  if (!to) return base::Unexpected{to.error()};
  out.to = *to;
  const auto uplink = uplinks_.find(mirror.to);
  if (uplink != uplinks_.end() && uplink->second->config.uplink.mac) {
    return base::fail(mirror.to + " has a mac, and sends no other's frames; give another");
  }
  return out;
}

void Topology::add(MirrorEntry mirror, Done done) {
  const auto name = mirror.name;
  const auto refuse = [&](const std::string& line) {
    done(base::fail("mirror " + name + ": " + line));
  };
  if (const auto line = conflict(name, {}); !line.empty()) return refuse(line);
  const auto config = resolve(mirror);
  if (!config) return refuse(config.error().message);
  const auto added = fabric_->add_mirror(*config, [this, name, done] {
    emit("MIRROR_ADDED", {{"name", name}});
    done({});
  });
  if (!added) return refuse(added.error().message);
  mirrors_.emplace(name, MirrorUnit{std::move(mirror), config->to});
}

void Topology::remove_mirror(const std::string& name, Done done) {
  const auto found = mirrors_.find(name);
  if (found == mirrors_.end()) return done(base::fail("there is no mirror " + name));
  const auto to = found->second.to;
  mirrors_.erase(found);
  fabric_->remove_mirror(to, [this, name, done] {
    emit("MIRROR_REMOVED", {{"name", name}});
    done({});
  });
}

// A port or an uplink goes; the switch takes it out of what it was watched by.
void Topology::leave_mirrors(const std::string& name) {
  std::vector<std::string> ended;
  for (auto& [mirror, unit] : mirrors_) {
    std::erase(unit.config.from, name);
    if (unit.config.to == name || unit.config.from.empty()) ended.push_back(mirror);
  }
  for (const auto& mirror : ended) remove_mirror(mirror, [](const auto&) {});
}

}  // namespace millrace::daemon

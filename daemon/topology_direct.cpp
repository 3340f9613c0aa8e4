// Topology: ports that are direct: each has an uplink for itself, whose device receives into its
// guest's buffers.
#include <algorithm>

#include "daemon/topology.hpp"

namespace millrace::daemon {

// The uplink of a direct port; nullptr: it is not there (any more).
UplinkUnit* Topology::direct_uplink(const PortUnit& port) {
  const auto found = uplinks_.find(port.config.direct);
  if (port.config.direct.empty() || found == uplinks_.end()) return nullptr;
  auto& unit = *found->second;
  return unit.uplink != nullptr && unit.state == UnitState::running ? &unit : nullptr;
}

// What a configuration file is refused for, against the uplinks and ports that are there.
std::string Topology::direct_refusal(const GuestPort& port) const {
  if (port.direct.empty()) return {};
  const auto found = uplinks_.find(port.direct);
  if (found == uplinks_.end() || found->second->state != UnitState::running) {
    return "direct = " + port.direct + ": there is no such uplink; add it first";
  }
  const auto& entry = found->second->config;
  if (auto line = direct_conflict(port, entry); !line.empty()) return line;
  if (!entry.uplink.direct) {
    return "direct = " + port.direct +
           ": the uplink serves all ports; remove it and add it with direct = true";
  }
  for (const auto& [other, unit] : ports_) {
    if (unit->config.direct == port.direct) {
      return "direct = " + port.direct + ": the uplink serves port " + other +
             " alone; give each port its own";
    }
  }
  return {};
}

// Before its queues start.
void Topology::make_direct(PortUnit& port) {
  if (port.config.direct.empty()) return;
  const auto tie = [this, &port](vswitch::DirectSink& sink) {
    auto* const unit = direct_uplink(port);
    if (unit == nullptr) return;
    const auto vlan = vlan_of_pair(port.config.device.port, unit->config.uplink.port);
    if (vlan) unit->uplink->tie(sink, *vlan);
  };
  const auto untie = [this, &port](std::function<void()> done) {
    const auto found = uplinks_.find(port.config.direct);
    if (found == uplinks_.end() || found->second->uplink == nullptr) return done();
    auto& unit = *found->second;
    // While it is asked something, or restarted, it is not closed.
    const auto elsewhere = [&unit](const vswitch::Uplink::Work& work) {
      if (unit.care.lost || unit.care.on_closed) return false;
      if (unit.care.asker != nullptr) {
        unit.care.asker->run(work);
      } else {
        work()();
      }
      return true;
    };
    const auto failed = [this, &unit](const std::string& why) {
      keeper_.lose(unit, Loss::error, why);
    };
    unit.uplink->untie(elsewhere, failed, std::move(done));
  };
  port.device->be_direct({tie, untie});
  // Where the uplink's queue is, all is done in one visit.
  if (auto* unit = direct_uplink(port); unit != nullptr) {
    pin(*port.device, {unit->uplink->home()}, 1);
    fabric_->pair(port.device->port(), unit->uplink->port(), [] {});
  }
}

// An uplink came that a port waits for.
void Topology::find_direct_port(UplinkUnit& unit) {
  if (!unit.config.uplink.direct) return;
  for (const auto& [name, port] : ports_) {
    if (port->config.direct != unit.config.uplink.name || port->device == nullptr) continue;
    if (port->state == UnitState::stopping) continue;
    pin(*port->device, {unit.uplink->home()}, 1);
    fabric_->pair(port->device->port(), unit.uplink->port(), [] {});
    port->device->tie_again();
  }
}

}  // namespace millrace::daemon

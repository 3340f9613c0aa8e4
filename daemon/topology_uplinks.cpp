// Topology: its uplinks, and the ports that follow them.
#include <algorithm>

#include "base/log.hpp"
#include "daemon/topology.hpp"
#include "daemon/uplink_check.hpp"
#include "daemon/uplink_lease.hpp"

namespace millrace::daemon {

// What a configuration file is refused for, against the uplinks that are there.
std::string Topology::standby_conflict(const UplinkEntry& entry) const {
  const auto& name = entry.uplink.name;
  for (const auto& [other, unit] : uplinks_) {
    const auto& its = unit->config.standby;
    if (its == name && !entry.standby.empty()) {
      return "it is the standby of " + other + " and can have none itself";
    }
    if (!entry.standby.empty() && its == entry.standby) {
      return "standby " + its + " is already the one of " + other + "; give each uplink its own";
    }
    if (other == entry.standby && !its.empty()) {
      return "standby " + other + " has a standby itself; give one that has none";
    }
    if ((other == entry.standby || its == name) && entry.pf && entry.pf == unit->config.pf) {
      return "it has a VF of the same PF as " + other +
             ": none can be the other's standby; a VF that is lost is replaced by another one";
    }
  }
  return {};
}

// A function from the pool, where that is what it asks for; and whether it can be used.
base::Result<void> Topology::borrow(UplinkEntry& entry, std::optional<sriov::VfLease>& lease) {
  if (entry.pf) {
    auto lent = lease_for(entry, pfs_.pool());
    if (!lent) return base::Unexpected{lent.error()};
    lease = *std::move(lent);
  }
  if (!entry.uplink.pci) return {};
  std::vector<std::string> others;
  for (const auto& [other, unit] : uplinks_) {
    const bool has_it = unit->uplink != nullptr && unit->uplink->attached();
    if (unit->config.uplink.pci && has_it) others.push_back(unit->config.uplink.device);
  }
  return check_pci_uplink(entry.uplink.device, others, dpdk_mb_);
}

void Topology::add(UplinkEntry entry, Done done) {
  const auto name = entry.uplink.name;
  const auto refuse = [&](const std::string& why) {
    done(base::fail("uplink " + name + ": " + why));
  };
  if (const auto line = conflict(name, {}); !line.empty()) return refuse(line);
  if (const auto line = standby_conflict(entry); !line.empty()) return refuse(line);
  std::optional<sriov::VfLease> lease;
  if (auto usable = borrow(entry, lease); !usable) return refuse(usable.error().message);
  if (auto started = ensure_eal(); !started) return done(started);
  entry.uplink.carries = keeper_.stands_alone(entry);
  auto& unit = *uplinks_.emplace(name, std::make_unique<UplinkUnit>()).first->second;
  unit.config = std::move(entry);
  unit.lease = std::move(lease);
  const auto ready = [this, &unit, done] {
    unit.state = UnitState::running;
    share_all_memory();
    emit("UPLINK_ADDED", {{"name", unit.config.uplink.name}});
    keeper_.keep(unit);
    done({});
  };
  if (auto made = make_wire_memory(unit, unit.config.uplink.device); !made) {
    uplinks_.erase(name);
    return refuse(made.error().message);
  }
  auto uplink = vswitch::open_uplink(unit.config.uplink, *reactors_, *fabric_,
                                     [this, ready] { loop_.defer(ready); });
  if (!uplink) {
    uplinks_.erase(name);
    return done(base::Unexpected{uplink.error()});
  }
  unit.uplink = *std::move(uplink);
}

base::Result<void> Topology::open_again(UplinkUnit& unit) {
  auto entry = unit.config;
  std::optional<sriov::VfLease> lease;
  if (auto usable = borrow(entry, lease); !usable) return usable;
  auto opened = make_wire_memory(unit, entry.uplink.device);
  if (opened) opened = unit.uplink->attach(entry.uplink.device);
  if (!opened) {
    unit.let_go();  // before the lease of that function ends
    return opened;
  }
  unit.config = std::move(entry);
  unit.lease = std::move(lease);
  share_all_memory();
  return {};
}

void Topology::let_go(UplinkUnit& unit) {
  unit.let_go();
  share_all_memory();
}

void Topology::finish(UplinkUnit& unit, std::function<void()> done) {
  share_all_memory();
  keeper_.close(unit, [this, &unit, done] {
    loop_.defer([this, name = unit.config.uplink.name, done] {
      uplinks_.erase(name);
      follow_all();
      done();
    });
  });
}

void Topology::follow(PortUnit& unit) {
  const auto& uplink = unit.config.follow_uplink;
  if (uplink.empty() || unit.device == nullptr) return;
  const bool up = keeper_.leads_out(uplink);
  if (unit.device->status().link_up == up) return;
  unit.device->set_link(up);
  const auto& name = unit.config.device.name;
  spdlog::info("port {}: its link is {}, as the one of uplink {}", name, up ? "up" : "down",
               uplink);
  emit("PORT_LINK", {{"name", name}, {"up", up}});
}

void Topology::follow_all() {
  for (auto& [name, unit] : ports_) {
    if (unit->state == UnitState::running) follow(*unit);
  }
}

std::optional<bool> Topology::isolated(vswitch::PortId port) const {
  for (const auto& [name, unit] : ports_) {
    if (unit->device != nullptr && unit->state != UnitState::stopping &&
        unit->device->port() == port) {
      return unit->config.device.port.isolated;
    }
  }
  return std::nullopt;
}

}  // namespace millrace::daemon

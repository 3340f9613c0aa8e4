// Topology: its uplinks, the ports that follow them, and functions that guests drive themselves.
#include <algorithm>

#include "base/log.hpp"
#include "base/numa.hpp"
#include "daemon/topology.hpp"
#include "daemon/uplink_check.hpp"
#include "daemon/uplink_lease.hpp"

namespace millrace::daemon {

// What a configuration file is refused for, against the uplinks that are there.
std::string Topology::standby_conflict(const UplinkEntry& entry) const {
  const auto& name = entry.uplink.name;
  if (entry.uplink.direct && !entry.standby.empty()) {
    return "direct and standby are given; a port that is direct has one uplink";
  }
  for (const auto& [other, unit] : uplinks_) {
    if (auto why = vepa_conflict(entry, unit->config); !why.empty()) return why;
    const auto& its = unit->config.standby;
    if (entry.uplink.direct && its == name) {
      return "it is the standby of " + other + " and cannot be direct";
    }
    if (its == name && !entry.standby.empty()) {
      return "it is the standby of " + other + " and can have none itself";
    }
    if (!entry.standby.empty() && its == entry.standby) {
      return "standby " + its + " is already the one of " + other + "; give each uplink its own";
    }
    if (other == entry.standby && !its.empty()) {
      return "standby " + other + " has a standby itself; give one that has none";
    }
    if (other == entry.standby && unit->config.uplink.direct) {
      return "standby " + other + " serves one port alone; give another";
    }
    if ((other == entry.standby || its == name) && entry.pf && entry.pf == unit->config.pf) {
      return "it has a VF of the same PF as " + other +
             ": none can be the other's standby; a VF that is lost is replaced by another one";
    }
  }
  return {};
}

// The same for bonds. One is there before its members are, so that these never have ports.
std::string Topology::bond_conflict(const UplinkEntry& entry) const {
  for (const auto& name : entry.members) {
    if (uplinks_.contains(name)) {
      return "member " + name + " is an uplink by itself; remove it, and add it after the bond";
    }
    if (const auto* other = bond_of(name); other != nullptr) {
      return "member " + name + " is one of " + other->config.uplink.name + " already";
    }
  }
  if (!entry.standby.empty()) {
    if (bond_of(entry.standby) != nullptr) {
      return "standby " + entry.standby + " is a member of a bond; give one that is none";
    }
    const auto found = uplinks_.find(entry.standby);
    if (found != uplinks_.end() && !found->second->config.members.empty()) {
      return "standby " + entry.standby + " is a bond; make this one a member of it";
    }
  }
  const auto* bond = bond_of(entry.uplink.name);
  if (bond == nullptr) return {};
  const auto why = unfit_as_member(entry);
  return why.empty() ? why : "as a member of " + bond->config.uplink.name + " it " + why;
}

// The bond that names this uplink as a member.
UplinkUnit* Topology::bond_of(const std::string& name) const {
  for (const auto& [other, unit] : uplinks_) {
    const auto& members = unit->config.members;
    if (std::ranges::find(members, name) != members.end()) return unit.get();
  }
  return nullptr;
}

base::Result<std::unique_ptr<vswitch::Uplink>> Topology::open(const UplinkUnit& unit,
                                                              const std::function<void()>& ready) {
  const auto& config = unit.config.uplink;
  if (unit.bond != nullptr) {
    auto member = vswitch::open_member(config, *unit.bond->uplink->bond());
    if (member) ready();
    return member;
  }
  if (config.bond != vswitch::BondMode::none) {
    return vswitch::open_bond(config, *reactors_, *fabric_, ready);
  }
  return vswitch::open_uplink(config, *reactors_, *fabric_, ready);
}

// A function from the pool, where that is what it asks for; and whether it can be used.
// `reactor`: where its first queue is going to be.
base::Result<void> Topology::borrow(UplinkEntry& entry, unsigned reactor,
                                    std::optional<sriov::VfLease>& lease) {
  if (entry.pf) {
    const int node = base::node_of_core(reactors_->at(reactor).config().core);
    auto lent = lease_for(entry, pfs_.pool(), node);
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
  keeper_.when_free(
      [this, entry = std::move(entry), done = std::move(done)] { add_now(entry, done); });
}

// No device is made or unmade elsewhere.
void Topology::add_now(UplinkEntry entry, Done done) {
  const auto name = entry.uplink.name;
  const auto refuse = [&](const std::string& why) {
    done(base::fail("uplink " + name + ": " + why));
  };
  if (const auto line = conflict(name, {}); !line.empty()) return refuse(line);
  if (const auto line = standby_conflict(entry); !line.empty()) return refuse(line);
  if (const auto line = bond_conflict(entry); !line.empty()) return refuse(line);
  std::optional<sriov::VfLease> lease;
  if (auto usable = borrow(entry, reactors_->next_place(), lease); !usable) {
    return refuse(usable.error().message);
  }
  if (auto started = ensure_eal(); !started) return done(started);
  auto* const bond = bond_of(name);
  if (bond != nullptr && bond->state != UnitState::running) return refuse("its bond is removed");
  entry.uplink.carries = keeper_.stands_alone(entry);
  auto& unit = *uplinks_.emplace(name, std::make_unique<UplinkUnit>()).first->second;
  unit.config = std::move(entry);
  unit.lease = std::move(lease);
  unit.bond = bond;
  const auto ready = [this, &unit, done] {
    unit.state = UnitState::running;
    share_all_memory();
    emit("UPLINK_ADDED", {{"name", unit.config.uplink.name}});
    keeper_.keep(unit);
    find_direct_port(unit);
    done({});
  };
  if (auto made = make_wire_memory(unit, unit.config.uplink.device); !made) {
    uplinks_.erase(name);
    return refuse(made.error().message);
  }
  auto uplink = open(unit, [this, ready] { loop_.defer(ready); });
  if (!uplink) {
    uplinks_.erase(name);
    return done(base::Unexpected{uplink.error()});
  }
  unit.uplink = *std::move(uplink);
  unit.uplink->open_and_close_by([this, &unit](const vswitch::Uplink::Work& work) {
    const auto& its = unit.config.uplink;
    const auto does = unit.care.closing ? "closes " + its.device : "opens its device";
    devices_->run("uplink " + its.name + " " + does, work);
  });
}

void Topology::open_again(UplinkUnit& unit, Done done) {
  auto entry = std::make_shared<UplinkEntry>(unit.config);
  const auto reactor = entry->uplink.direct ? unit.uplink->home() : reactors_->next_place();
  auto usable = borrow(*entry, reactor, unit.lease);
  if (usable) usable = make_wire_memory(unit, entry->uplink.device);
  if (!usable) {
    if (unit.lease) unit.lease->was_not_used();
    return let_go(unit, [done, usable] { done(usable); });
  }
  unit.uplink->attach(entry->uplink.device, [this, &unit, entry, done](const auto& opened) {
    if (!opened) return let_go(unit, [done, opened] { done(opened); });
    unit.config = *entry;
    share_all_memory();
    done({});
  });
}

// What it had for a device that is closed goes, the function's lease last. The kernel may wait for
// the function's reset.
void Topology::let_go(UplinkUnit& unit, std::function<void()> done) {
  struct Left {
    std::unique_ptr<EalDomain> domain;
    std::optional<sriov::VfLease> lease;
  };
  unit.stalls = {};
  unit.memory.reset();
  share_all_memory();
  const auto left = std::make_shared<Left>(std::move(unit.domain), std::move(unit.lease));
  unit.lease.reset();
  if (left->domain == nullptr && !left->lease) return done();
  const auto& its = unit.config.uplink;
  devices_->run("uplink " + its.name + " gives back " + its.device, [left, done] {
    left->domain.reset();
    if (left->lease) left->lease->reset();
    return [left, done] {
      left->lease.reset();
      done();
    };
  });
}

base::Result<sriov::VirtualFunction> Topology::lend_function(
    const sriov::VfGuest& guest, const std::optional<sriov::PciAddress>& physical, int node) {
  const auto name = "guest " + guest.name + ": ";
  if (closing_) return base::fail(name + "the daemon is stopping");
  auto lent = pfs_.pool().lend_to_guest(guest, {.holder = {}, .physical = physical, .node = node});
  if (!lent) return base::fail(name + lent.error().message);
  spdlog::info("guest {} has function {}", guest.name, sriov::format(lent->address));
  return lent;
}

// The kernel may wait for its reset.
void Topology::return_function(const std::string& guest, Done done) {
  if (closing_) return done(base::fail("guest " + guest + ": the daemon is stopping"));
  if (auto ready = ensure_devices(); !ready) return done(ready);
  auto taken = pfs_.pool().take_from_guest(guest);
  if (!taken) return done(base::Unexpected{taken.error()});
  const auto left = std::make_shared<std::optional<sriov::VfLease>>(*std::move(taken));
  const auto line = "guest " + guest + " gives back " + sriov::format((*left)->function().address);
  spdlog::info("{}", line);
  ++returning_;
  devices_->run(line, [this, left, done] {
    (*left)->reset();
    return [this, left, done] {
      left->reset();
      --returning_;
      done({});
    };
  });
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

#include "daemon/topology.hpp"

#include <algorithm>
#include <cctype>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "base/mapping.hpp"
#include "blk/image.hpp"
#include "blk/pinner.hpp"
#include "daemon/eal.hpp"
#include "daemon/kept_functions.hpp"
#include "daemon/kept_ports.hpp"
#include "daemon/system_check.hpp"
#include "daemon/uplink_check.hpp"
#include "virtio/fault.hpp"

namespace millrace::daemon {

namespace {

// How long a start waits for images that a killed predecessor still holds.
constexpr std::chrono::milliseconds image_look_every{20};
constexpr unsigned image_looks = 250;

std::vector<base::ReactorConfig> reactor_configs(const Config& config) {
  std::vector<base::ReactorConfig> reactors;
  for (const auto core : config.cores) {
    base::ReactorConfig reactor;
    reactor.index = static_cast<unsigned>(reactors.size());
    reactor.core = static_cast<int>(core);
    reactor.mode = config.mode;
    reactor.spin_ns = config.spin_us * 1000;
    reactors.push_back(reactor);
  }
  return reactors;
}

// Runs `done` after `count` calls.
std::function<void()> countdown(std::size_t count, std::function<void()> done) {
  auto left = std::make_shared<std::size_t>(count);
  return [left, done = std::move(done)] {
    if (--*left == 0) done();
  };
}

// "PORT_REMOVED"
std::string event_of(std::string kind, const char* what) {
  for (auto& c : kind) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return kind + "_" + what;
}

}  // namespace

Topology::Topology(base::EventLoop& loop, const Config& config)
    : loop_{loop},
      started_ns_{base::monotonic_ns()},
      dpdk_mb_{config.dpdk_mb},
      dpdk_hugepages_{config.dpdk_hugepages},
      pfs_{loop, [this](auto event, const auto& data) { emit(event, data); }},
      keeper_{loop,
              uplinks_,
              {.emit = [this](auto event, const auto& data) { emit(event, data); },
               .open = [this](UplinkUnit& unit, Done done) { open_again(unit, std::move(done)); },
               .closed = [this](UplinkUnit& unit, auto done) { let_go(unit, std::move(done)); },
               .remove = [this](const auto& name) { remove_uplink(name, [](const auto&) {}); },
               .physical_has_link = [](const auto& device) { return physical_has_link(device); },
               .guests = [this](vswitch::PortId port) { return isolated(port); },
               .changed = [this] { follow_all(); }}} {}

base::Result<std::unique_ptr<Topology>> Topology::make(base::EventLoop& loop,
                                                       const Config& config) {
  std::unique_ptr<Topology> self{new Topology{loop, config}};
  base::install_memory_fault_handler();
  spdlog::debug("TSC: {:.0f} MHz",
                base::cycles_per_second() / 1e6);  // calibrated before a reactor asks

  auto reactors = base::ReactorPool::make(loop, reactor_configs(config));
  if (!reactors) return base::Unexpected{reactors.error()};
  self->reactors_ = *std::move(reactors);

  auto fabric = vswitch::Fabric::make(*self->reactors_, config.fabric);
  if (!fabric) return base::Unexpected{fabric.error()};
  self->fabric_ = *std::move(fabric);
  self->keeper_.use(*self->fabric_);

  // Neither takes pages from the other: the reclaimer looks at the board of what is pinned, and the
  // pinner waits for whoever looked before.
  auto reclaimer = guest::Reclaimer::make(
      [raw = self.get()](const virtio::GuestMemory& memory, std::uint64_t at, std::uint64_t bytes) {
        return raw->rings_->pinner().board().holds(memory, at, bytes) ||
               raw->wire_board_.holds(memory, at, bytes);
      });
  if (!reclaimer) return base::Unexpected{reclaimer.error()};
  self->reclaimer_ = *std::move(reclaimer);

  auto rings = blk::UringPool::make(*self->reactors_);
  if (!rings) return base::Unexpected{rings.error()};
  self->rings_ = *std::move(rings);
  self->rings_->pinner().before_pinning([raw = self.get()] { raw->reclaimer_->settle(); });
  self->make_balancer(config.balance);
  return self;
}

void Topology::add_all(const Config& config, Done done) {
  const auto applied = pfs_.start(config.pfs, kept_functions_file(config.control_socket));
  if (!applied) return done(applied);
  add_next(std::make_shared<const Config>(config), 0, std::move(done));
}

void Topology::add_next(std::shared_ptr<const Config> config, std::size_t index, Done done) {
  const auto next = [this, config, index, done](const base::Result<void>& added) {
    if (!added) return done(added);
    // Not from here: a hundred units that answer at once must not nest.
    loop_.defer([this, config, index, done] { add_next(config, index + 1, done); });
  };
  const std::size_t uplinks = config->uplinks.size(), ports = config->ports.size();
  if (index < uplinks) return add(config->uplinks[index], next);
  if (index < uplinks + ports) return add(config->ports[index - uplinks], next);
  const std::size_t disks = config->disks.size(), others = uplinks + ports + disks;
  if (index < others) {
    return add_when_free(config->disks[index - uplinks - ports], image_looks, next);
  }
  if (index < others + config->companions.size()) {
    return add(config->companions[index - others], next);
  }
  const std::size_t units = others + config->companions.size();
  if (index < units + config->mirrors.size()) return add(config->mirrors[index - units], next);
  done({});
}

void Topology::add_when_free(const GuestDisk& disk, unsigned looks, Done done) {
  if (looks == 0 || closing_ || !blk::image_held(disk.device)) return add(disk, std::move(done));
  image_wait_ = loop_.after(image_look_every, [this, disk, looks, done = std::move(done)] {
    add_when_free(disk, looks - 1, done);
  });
}

std::string Topology::conflict(const std::string& name, const std::string& socket) const {
  if (closing_) return "the daemon is stopping";
  if (ports_.contains(name)) return "the name " + name + " is used by a port; give another";
  if (disks_.contains(name)) return "the name " + name + " is used by a disk; give another";
  if (const auto found = companions_.find(name); found != companions_.end()) {
    return "the name " + name + " is used by a " +
           guest::kind_of(found->second->config.device.settings) + "; give another";
  }
  if (mirrors_.contains(name)) return "the name " + name + " is used by a mirror; give another";
  if (uplinks_.contains(name)) return "the name " + name + " is used by an uplink; give another";
  const auto taken = [&](const auto& units) {
    for (const auto& [other, unit] : units) {
      if (unit->config.server.socket == socket) return true;
    }
    return false;
  };
  const auto is_port = [&](const auto& each) {
    const auto status = each.second->device->ports();
    return std::ranges::any_of(status, [&](const auto& p) { return p.settings.socket == socket; });
  };
  if (!socket.empty() && (taken(ports_) || taken(disks_) || taken(companions_) ||
                          std::ranges::any_of(companions_, is_port))) {
    return "the socket " + socket + " is in use; give another";
  }
  return {};
}

// --- adding ---

void Topology::add(GuestPort port, Done done) {
  const auto name = port.device.name;
  if (const auto line = conflict(name, port.server.socket); !line.empty()) {
    return done(base::fail("port " + name + ": " + line));
  }
  if (const auto line = direct_refusal(port); !line.empty()) {
    return done(base::fail("port " + name + ": " + line));
  }
  if (const auto known = check_reactors(port.reactors); !known) {
    return done(base::fail("port " + name + ": " + known.error().message));
  }
  if (auto made = make_socket_directory(port.server.socket); !made) return done(made);
  auto& unit = *ports_.emplace(name, std::make_unique<PortUnit>()).first->second;
  unit.config = std::move(port);
  // Deferred, so that the device is in its unit even where the switch answers at once.
  auto device = net::Device::make(unit.config.device, *reactors_, *fabric_, [this, &unit, done] {
    loop_.defer([this, &unit, done] { serve(unit, done); });
  });
  if (!device) {
    ports_.erase(name);
    return done(base::Unexpected{device.error()});
  }
  unit.device = *std::move(device);
  pin(*unit.device, unit.config.reactors, 2);  // a pair together
  make_direct(unit);
}

void Topology::serve(PortUnit& unit, Done done) {
  follow(unit);
  auto server = vhost::Server::make(loop_, *unit.device, unit.config.server);
  if (!server) {
    const auto error = server.error();
    unit.state = UnitState::stopping;
    return finish(unit, [done, error] { done(base::Unexpected{error}); });
  }
  unit.server = *std::move(server);
  unit.state = UnitState::running;
  watch_sessions(unit.config.device.name, *unit.server, "port");
  share_memory(unit);
  emit("PORT_ADDED", {{"name", unit.config.device.name}});
  done({});
}

void Topology::add(GuestDisk disk, Done done) {
  const auto name = disk.device.name;
  if (const auto line = conflict(name, disk.server.socket); !line.empty()) {
    return done(base::fail("disk " + name + ": " + line));
  }
  if (const auto known = check_reactors(disk.reactors); !known) {
    return done(base::fail("disk " + name + ": " + known.error().message));
  }
  if (auto made = make_socket_directory(disk.server.socket); !made) return done(made);
  auto unit = std::make_unique<DiskUnit>();
  unit->config = std::move(disk);
  auto device = blk::Device::make(unit->config.device, *reactors_, *rings_);
  if (!device) return done(base::Unexpected{device.error()});
  unit->device = *std::move(device);
  pin(*unit->device, unit->config.reactors, 1);
  auto server = vhost::Server::make(loop_, *unit->device, unit->config.server);
  if (!server) return done(base::Unexpected{server.error()});
  unit->server = *std::move(server);
  unit->state = UnitState::running;
  watch_sessions(name, *unit->server, "disk");
  disks_.emplace(name, std::move(unit));
  emit("DISK_ADDED", {{"name", name}});
  done({});
}

void Topology::add(GuestCompanion companion, Done done) {
  const auto name = companion.device.name;
  const char* const kind = guest::kind_of(companion.device.settings);
  if (const auto line = conflict(name, companion.server.socket); !line.empty()) {
    return done(base::fail(std::string{kind} + " " + name + ": " + line));
  }
  if (auto ok = take_kept_ports(companion); !ok) return done(ok);
  auto sockets = port_sockets(companion);
  for (const auto& socket : sockets) {
    if (const auto line = conflict({}, socket); !line.empty()) {
      return done(base::fail(std::string{kind} + " " + name + ": " + line));
    }
  }
  sockets.push_back(companion.server.socket);
  for (const auto& socket : sockets) {
    if (auto made = make_socket_directory(socket); !made) return done(made);
  }
  auto unit = std::make_unique<CompanionUnit>();
  unit->config = std::move(companion);
  auto device =
      guest::make_device(name, unit->config.device.settings, {loop_, *reactors_, *reclaimer_});
  if (!device) return done(base::Unexpected{device.error()});
  unit->device = *std::move(device);
  auto server = vhost::Server::make(loop_, *unit->device, unit->config.server);
  if (!server) return done(base::Unexpected{server.error()});
  unit->server = *std::move(server);
  unit->state = UnitState::running;
  watch_sessions(name, *unit->server, kind);
  companions_.emplace(name, std::move(unit));
  emit(event_of(kind, "ADDED"), {{"name", name}});
  done({});
}

base::Result<void> Topology::ensure_devices() {
  if (devices_ != nullptr) return {};
  auto devices = DeviceWorker::make(loop_);
  if (!devices) return base::Unexpected{devices.error()};
  devices_ = *std::move(devices);
  return {};
}

base::Result<void> Topology::ensure_eal() {
  if (auto ready = ensure_devices(); !ready) return ready;
  if (eal_ == nullptr) {
    eal_ = std::make_unique<base::Result<void>>(start_eal(dpdk_mb_, dpdk_hugepages_));
    if (*eal_) {
      for (unsigned i = 0; i < reactors_->size(); ++i) {
        reactors_->post(
            i, [](base::Reactor&) { (void)register_reactor_thread(); }, [] {});
      }
    }
  }
  return *eal_;
}

void Topology::watch_sessions(const std::string& name, vhost::Server& server, const char* kind) {
  const nlohmann::json unit{{"kind", kind}, {"name", name}};
  server.on_change([this, unit, &server](bool connected) {
    auto data = unit;
    const auto status = server.status();
    if (connected) {
      data["peer"] = status.peer;
    } else {
      data["reason"] = status.last_error;
    }
    emit(connected ? "SESSION_CONNECTED" : "SESSION_DISCONNECTED", data);
  });
  server.on_fault([this, unit](unsigned queue, virtio::Fault fault) {
    auto data = unit;
    data["queue"] = queue;
    data["fault"] = virtio::name_of(fault);
    emit("QUEUE_FAULT", data);
  });
}

// --- removing ---

void Topology::finish(PortUnit& unit, std::function<void()> done) {
  const auto drop = [this, &unit, done] {
    // Never from inside the part that is destroyed.
    loop_.defer([this, name = unit.config.device.name, done] {
      ports_.erase(name);
      done();
    });
  };
  const auto leave = [this, &unit, drop] {
    loop_.defer([&unit, drop] {
      unit.server.reset();
      unit.device->close(drop);
    });
  };
  if (unit.server == nullptr) return leave();
  unit.server->close(leave);
}

void Topology::finish(DiskUnit& unit, std::function<void()> done) {
  unit.server->close([this, &unit, done] {
    loop_.defer([this, name = unit.config.device.name, done] {
      disks_.erase(name);
      done();
    });
  });
}

void Topology::finish(CompanionUnit& unit, std::function<void()> done) {
  unit.server->close([this, &unit, done] {
    loop_.defer([this, name = unit.config.device.name, done] {
      companions_.erase(name);
      done();
    });
  });
}

template <class Unit>
void Topology::remove(Units<Unit>& units, const std::string& name, const char* kind, Done done) {
  const auto found = units.find(name);
  if (found == units.end()) {
    return done(base::fail(std::string{"there is no "} + kind + " " + name));
  }
  auto& unit = *found->second;
  if (unit.state != UnitState::running) {
    return done(base::fail(std::string{kind} + " " + name + " is being " +
                           (unit.state == UnitState::starting ? "added" : "removed") +
                           "; try again later"));
  }
  unit.state = UnitState::stopping;
  leave_mirrors(name);
  finish(unit, [this, name, kind = std::string{kind}, done] {
    emit(event_of(kind, "REMOVED"), {{"name", name}});
    done({});
  });
}

void Topology::remove_port(const std::string& name, Done done) {
  remove(ports_, name, "port", std::move(done));
}
void Topology::remove_disk(const std::string& name, Done done) {
  remove(disks_, name, "disk", std::move(done));
}
base::Result<CompanionUnit*> Topology::find_companion(const char* kind, const std::string& name) {
  const auto found = companions_.find(name);
  if (found == companions_.end() ||
      std::string_view{kind} != guest::kind_of(found->second->config.device.settings)) {
    return base::fail(std::string{"there is no "} + kind + " " + name);
  }
  if (found->second->state != UnitState::running) {
    return base::fail(std::string{kind} + " " + name + " is being removed");
  }
  return found->second.get();
}

base::Result<std::uint64_t> Topology::resize_balloon(const std::string& name, std::uint64_t bytes) {
  const auto unit = find_companion("balloon", name);
  if (!unit) return base::Unexpected{unit.error()};
  auto size = (*unit)->device->set_size(bytes);
  if (size) emit("BALLOON_RESIZED", {{"name", name}, {"bytes", *size}});
  return size;
}

base::Result<std::uint64_t> Topology::resize_mem(const std::string& name, std::uint64_t bytes) {
  const auto unit = find_companion("mem", name);
  if (!unit) return base::Unexpected{unit.error()};
  auto size = (*unit)->device->set_size(bytes);
  if (size) emit("MEM_RESIZED", {{"name", name}, {"bytes", *size}});
  return size;
}

base::Result<void> Topology::add_console_port(const std::string& console,
                                              const guest::PortSettings& port) {
  const auto unit = find_companion("console", console);
  if (!unit) return base::Unexpected{unit.error()};
  if (const auto line = conflict({}, port.socket); !line.empty()) {
    return base::fail("port " + port.name + " of console " + console + ": " + line);
  }
  if (auto made = make_socket_directory(port.socket); !made) return made;
  auto& device = *(*unit)->device;
  auto added = device.add_port(port);
  if (!added) return added;
  added = keep_ports((*unit)->config, device);
  if (!added) std::ignore = device.remove_port(port.name);
  if (added) emit("CONSOLE_PORT_ADDED", {{"console", console}, {"name", port.name}});
  return added;
}

base::Result<void> Topology::remove_console_port(const std::string& console,
                                                 const std::string& port) {
  const auto unit = find_companion("console", console);
  if (!unit) return base::Unexpected{unit.error()};
  auto removed = (*unit)->device->remove_port(port);
  if (removed) removed = keep_ports((*unit)->config, *(*unit)->device);
  if (removed) emit("CONSOLE_PORT_REMOVED", {{"console", console}, {"name", port}});
  return removed;
}

void Topology::remove_companion(const char* kind, const std::string& name, Done done) {
  const auto found = companions_.find(name);
  const bool other =
      found != companions_.end() &&
      std::string_view{kind} != guest::kind_of(found->second->config.device.settings);
  if (other) return done(base::fail(std::string{"there is no "} + kind + " " + name));
  remove(companions_, name, kind, std::move(done));
}

// A bond's members go with it, and before it.
void Topology::remove_uplink(const std::string& name, Done done) {
  const auto member = std::ranges::find_if(uplinks_, [&name](const auto& each) {
    const auto& unit = *each.second;
    return unit.bond != nullptr && unit.bond->config.uplink.name == name;
  });
  if (member == uplinks_.end()) return remove(uplinks_, name, "uplink", std::move(done));
  remove(uplinks_, member->first, "uplink", [this, name, done](const base::Result<void>& removed) {
    removed ? remove_uplink(name, done) : done(removed);
  });
}

base::Result<std::uint64_t> Topology::resize_disk(const std::string& name, std::uint64_t bytes) {
  const auto found = disks_.find(name);
  if (found == disks_.end()) return base::fail("there is no disk " + name);
  if (found->second->state != UnitState::running) {
    return base::fail("disk " + name + " is being removed");
  }
  auto size = found->second->device->resize(bytes);
  if (size) emit("DISK_RESIZED", {{"name", name}, {"bytes", *size}});
  return size;
}

void Topology::flush_addresses(const std::string& name, Done done) {
  auto port = vswitch::no_port;
  if (const auto found = ports_.find(name); found != ports_.end()) {
    if (found->second->device != nullptr) port = found->second->device->port();
  } else if (const auto uplink = uplinks_.find(name); uplink != uplinks_.end()) {
    if (uplink->second->uplink != nullptr) port = uplink->second->uplink->port();
  }
  if (!name.empty() && port == vswitch::no_port) {
    return done(base::fail("there is no port or uplink " + name));
  }
  fabric_->flush_addresses(port, [done] { done({}); });
}

std::string Topology::name_of(vswitch::PortId port) const {
  for (const auto& [name, unit] : ports_) {
    if (unit->device != nullptr && unit->device->port() == port) return name;
  }
  for (const auto& [name, unit] : uplinks_) {
    if (unit->uplink != nullptr && unit->uplink->port() == port) return name;
  }
  return {};
}

// --- closing ---

bool Topology::any_starting_or_stopping() const {
  const auto unsettled = [](const auto& units) {
    for (const auto& [name, unit] : units) {
      if (unit->state != UnitState::running) return true;
    }
    return false;
  };
  return returning_ != 0 || unsettled(uplinks_) || unsettled(ports_) || unsettled(disks_) ||
         unsettled(companions_);
}

template <class Unit>
void Topology::close_all(Units<Unit>& units, std::function<void()> done) {
  // One more than there are, so that an empty list answers too.
  const auto one_less = countdown(units.size() + 1, std::move(done));
  for (auto& [name, unit] : units) {
    unit->state = UnitState::stopping;
    finish(*unit, one_less);
  }
  loop_.defer(one_less);
}

void Topology::close(std::function<void()> done) {
  closing_ = true;
  balancer_.reset();
  if (any_starting_or_stopping()) {
    // What is on its way arrives within a few rounds of the reactors, but for devices.
    close_wait_ = loop_.after(std::chrono::milliseconds{1}, [this, done] { close(done); });
    return;
  }
  mirrors_.clear();  // each ends with its ports
  // Guests first, then the way out; the rings when nobody can submit any more.
  close_all(ports_, [this, done] {
    close_all(disks_, [this, done] {
      close_all(companions_,
                [this, done] { close_all(uplinks_, [this, done] { rings_->close(done); }); });
    });
  });
}

}  // namespace millrace::daemon

// Topology: where its queues are, and how they get elsewhere.
#include <algorithm>

#include "base/log.hpp"
#include "daemon/topology.hpp"

namespace millrace::daemon {

namespace {

template <class Unit>
void visit(const Topology::Units<Unit>& units, const Balancer::Visit& see) {
  for (const auto& [name, unit] : units) {
    if (unit->device == nullptr || unit->state != UnitState::running) continue;
    const char* kind = "port";
    if constexpr (std::is_same_v<Unit, DiskUnit>) kind = "disk";
    if constexpr (std::is_same_v<Unit, CompanionUnit>) {
      kind = guest::kind_of(unit->config.device.settings);
    }
    see(kind, name, *unit->device);
  }
}

}  // namespace

void Topology::make_balancer(bool moves) {
  Balancer::Devices devices;
  devices.for_each = [this](const Balancer::Visit& see) {
    visit(ports_, see);
    visit(disks_, see);
    visit(companions_, see);
  };
  devices.is_shared = [this](unsigned reactor) {
    for (const auto& [name, unit] : uplinks_) {
      if (unit->uplink == nullptr) continue;
      const auto status = unit->uplink->status();
      if (std::ranges::find(status.queues, reactor, &vswitch::UplinkStatus::Queue::reactor) !=
          status.queues.end()) {
        return true;
      }
    }
    return false;
  };
  devices.move = [this](const QueueLoad& queue, unsigned reactor, std::function<void()> done) {
    virtio::DeviceBase* const device = find_device(queue.unit);
    if (device == nullptr) return done();
    const nlohmann::json data{{"kind", queue.kind},    {"name", queue.unit}, {"queue", queue.queue},
                              {"from", queue.reactor}, {"reactor", reactor}, {"reason", "load"}};
    device->move_queue(queue.queue, reactor,
                       [this, data, done = std::move(done)](const base::Result<void>& result) {
                         // One that stopped or went elsewhere meanwhile is no news.
                         if (result) emit("QUEUE_MOVED", data);
                         done();
                       });
  };
  balancer_ = std::make_unique<Balancer>(loop_, *reactors_, std::move(devices), moves);
}

virtio::DeviceBase* Topology::find_device(const std::string& name) {
  virtio::DeviceBase* found = nullptr;
  const auto see = [&](const char*, const std::string& unit, virtio::DeviceBase& device) {
    if (unit == name) found = &device;
  };
  visit(ports_, see);
  visit(disks_, see);
  visit(companions_, see);
  return found;
}

base::Result<void> Topology::check_reactors(const std::vector<unsigned>& reactors) const {
  for (const unsigned each : reactors) {
    if (each < reactors_->size()) continue;
    return base::fail("reactor " + std::to_string(each) + " is not there; give 0 to " +
                      std::to_string(reactors_->size() - 1));
  }
  return {};
}

void Topology::pin(virtio::DeviceBase& device, const std::vector<unsigned>& reactors,
                   unsigned queues_together) {
  if (reactors.empty()) return;
  for (unsigned i = 0; i < device.queues_max(); ++i) {
    device.pin_queue(i, reactors[i / queues_together % reactors.size()]);
  }
}

void Topology::move_queue(const std::string& name, unsigned queue, std::optional<unsigned> reactor,
                          Done done) {
  virtio::DeviceBase* const device = find_device(name);
  if (device == nullptr) return done(base::fail("there is no port, disk or companion " + name));
  const auto refuse = [&](const std::string& why) { done(base::fail(name + ": " + why)); };
  if (queue >= device->queues_max()) {
    return refuse("queue " + std::to_string(queue) + " is not there; give 0 to " +
                  std::to_string(device->queues_max() - 1));
  }
  if (const auto port = ports_.find(name);
      port != ports_.end() && !port->second->config.direct.empty()) {
    return refuse("it is direct: its queues are where its uplink is");
  }
  if (!reactor) {
    device->pin_queue(queue, std::nullopt);
    return done({});
  }
  if (const auto known = check_reactors({*reactor}); !known) return refuse(known.error().message);
  const auto before = device->queue_status(queue);
  if (before.started && !before.can_move && before.reactor != *reactor) {
    return refuse("queue " + std::to_string(queue) + " stays where it was started");
  }
  // One that is not started goes there when it is; one that is about to start has its turn first.
  device->pin_queue(queue, reactor);
  const nlohmann::json data{{"name", name},
                            {"queue", queue},
                            {"from", before.reactor},
                            {"reactor", *reactor},
                            {"reason", "command"}};
  const bool moves = before.started && before.reactor != *reactor;
  device->move_queue(
      queue, *reactor,
      [this, data, moves, name, queue, done = std::move(done)](base::Result<void> result) {
        if (result && moves) emit("QUEUE_MOVED", data);
        if (!result) {
          // One that stopped before its turn is there from its next start on.
          const auto* now = find_device(name);
          const bool there = now != nullptr && now->queue_status(queue).started;
          result = there ? base::fail(name + ": " + result.error().message) : base::Result<void>{};
        }
        done(result);
      });
}

}  // namespace millrace::daemon

// Topology: which guests' memory is in the reach of which uplinks (zero copy).
#include <algorithm>

#include "base/log.hpp"
#include "daemon/topology.hpp"
#include "daemon/uplink_check.hpp"

namespace millrace::daemon {

namespace {

// Whether the port's frames may leave by the uplink without a copy. A function that serves one
// station alone shall reach the memory of that one alone.
bool reaches(const UplinkUnit& uplink, const PortUnit& port) {
  if (uplink.memory == nullptr || uplink.state != UnitState::running) return false;
  if (!uplink.uplink->attached()) return false;
  const auto& direct = port.config.direct;
  if (uplink.config.uplink.direct || !direct.empty()) return direct == uplink.config.uplink.name;
  const auto& station = uplink.config.uplink.mac;
  return !station || station == port.config.device.mac;
}

}  // namespace

// Others must not come into the domain of a zero-copy uplink, nor it into theirs.
base::Result<void> Topology::check_wire_group(const UplinkUnit& unit,
                                              const std::string& function) const {
  std::vector<std::string> others;
  for (const auto& [name, other] : uplinks_) {
    const auto& its = other->config.uplink;
    const bool has_device = other->uplink != nullptr && other->uplink->attached();
    if (!its.pci || !has_device || other.get() == &unit) continue;
    if (its.zero_copy || unit.config.uplink.zero_copy) others.push_back(its.device);
  }
  return check_alone_in_group(function, others);
}

// Before the device is opened, which `unit` does not have.
base::Result<void> Topology::make_wire_memory(UplinkUnit& unit, const std::string& function) {
  if (!unit.config.uplink.pci) return {};
  if (auto alone = check_wire_group(unit, function); !alone) return alone;
  if (!unit.config.uplink.zero_copy) return {};
  const auto access = unit.config.uplink.direct ? vfio::Access::read_write : vfio::Access::read;
  auto domain = EalDomain::make(function, access);
  if (!domain) return base::Unexpected{domain.error()};
  unit.domain = *std::move(domain);
  const auto publish = [&unit](std::shared_ptr<const vswitch::DmaRegions> regions,
                               std::function<void()> over) {
    // One that closes ends everything by itself.
    if (unit.state == UnitState::running) unit.uplink->set_regions(std::move(regions), over);
  };
  auto memory = WireMemory::make(
      {loop_, *unit.domain, wire_board_, [this] { reclaimer_->settle(); }, publish},
      unit.domain->free_space());
  if (!memory) return base::Unexpected{memory.error()};
  unit.memory = *std::move(memory);
  if (!stall_looks_.active()) {
    stall_looks_ = loop_.every(StallWatch::look_every, [this] { look_for_stalls(); });
  }
  return {};
}

// A device that stands still (without a link, mostly) keeps what it was lent, and whoever wants
// that back waits: a queue that stops or keeps its order, a guest whose memory goes. It is given
// up, which ends all it reads, and had again; it is lent nothing until it sends again.
void Topology::look_for_stalls() {
  for (const auto& [name, unit] : uplinks_) {
    if (unit->state != UnitState::running || unit->memory == nullptr || unit->care.lost) continue;
    const auto figures = unit->uplink->status().zero_copy.value();
    const bool rests = !unit->uplink->carries();
    if (!unit->stalls.look(figures.packets, figures.done, rests)) continue;
    keeper_.lose(*unit, Loss::still, "does not send what it was given");
    return;  // the list may change; the others have their turn with the next look
  }
}

// The hook is called at once where there is memory, and with every change.
void Topology::share_memory(PortUnit& port) {
  if (port.device == nullptr) return;
  const bool lends =
      std::ranges::any_of(uplinks_, [&](const auto& each) { return reaches(*each.second, port); });
  port.device->lend(lends);
  port.device->on_memory([this, &port](const std::shared_ptr<const virtio::GuestMemory>& memory) {
    for (const auto& [name, uplink] : uplinks_) {
      if (reaches(*uplink, port)) uplink->memory->use(port.config.device.name, memory);
    }
  });
}

void Topology::share_all_memory() {
  for (const auto& [name, port] : ports_) share_memory(*port);
}

}  // namespace millrace::daemon

// FabricState: mirrors; shard_mirror.cpp has their data path.
#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "switch/fabric_state.hpp"

namespace millrace::vswitch {

// What a mirror cannot be made for; empty: it can.
std::string FabricState::refusal(const MirrorConfig& mirror) const {
  const PortConfig& to = ports.at(mirror.to)->config;
  if (mirrors.size() >= mirrors_max) return "there are 32 mirrors already; remove one";
  if (mirrors.contains(mirror.to)) {
    return to.name + " is another mirror's destination; name all ports in one mirror";
  }
  if (to.alone) return to.name + " is direct, bound to one other port; give another destination";
  if (to.vepa)
    return to.name + " has vepa, guests reach each other by it; give another destination";
  for (const auto& [other, state] : mirrors) {
    if (std::ranges::find(state->config.from, mirror.to) != state->config.from.end()) {
      return to.name + " is mirrored itself, and copies are not copied; give another destination";
    }
  }
  for (const PortId id : mirror.from) {
    const std::string& name = ports.at(id)->config.name;
    if (id == mirror.to) return name + " is its own destination; give another";
    if (mirrors.contains(id)) {
      return name + " is a mirror's destination, and copies are not copied; leave it out";
    }
  }
  return {};
}

base::Result<> FabricState::add_mirror(const MirrorConfig& mirror, Done done) {
  if (const auto line = refusal(mirror); !line.empty()) return base::fail(line);
  auto state = std::make_shared<MirrorState>();
  state->config = mirror;
  state->dropped_before = dropped_for(mirror.to);
  state->counters = std::vector<ReactorMirrorCounters>(pool.size());
  mirrors.emplace(mirror.to, std::move(state));
  publish({}, [self = shared_from_this(), to = mirror.to, done = std::move(done)] {
    self->walk_addresses(
        [to](Shard& shard, std::size_t first, std::size_t count) {
          shard.addresses().flush(first, count, to, false);
        },
        done);
  });
  return {};
}

// Kept until no shard counts on it.
void FabricState::remove_mirror(PortId to, Done done) {
  const auto found = mirrors.find(to);
  if (found == mirrors.end()) return publish({}, std::move(done));
  std::shared_ptr<MirrorState> mirror = std::move(found->second);
  mirrors.erase(found);
  publish({}, [mirror, done = std::move(done)] {
    if (done) done();
  });
}

// Answers the mirror whose destination it was; the caller publishes, and keeps that until all know.
std::shared_ptr<MirrorState> FabricState::leave_mirrors(PortId port) {
  for (auto& [to, mirror] : mirrors) std::erase(mirror->config.from, port);
  const auto found = mirrors.find(port);
  if (found == mirrors.end()) return nullptr;
  std::shared_ptr<MirrorState> mirror = std::move(found->second);
  mirrors.erase(found);
  return mirror;
}

std::uint64_t FabricState::dropped_for(PortId port) const {
  std::uint64_t dropped = 0;
  for (const auto& [counters] : ports.at(port)->counters) {
    dropped += counters.drop_ring_full.get() + counters.drop_no_queue.get() +
               counters.drop_too_long.get() + counters.drop_link_full.get() +
               counters.drop_queue_fault.get() + counters.filtered.get();
  }
  return dropped;
}

MirrorFigures FabricState::mirror_figures(PortId to) const {
  const auto found = mirrors.find(to);
  if (found == mirrors.end()) return {};
  MirrorFigures figures;
  for (const auto& [counters] : found->second->counters) {
    figures.frames += counters.frames.get();
    figures.bytes += counters.bytes.get();
  }
  figures.dropped = dropped_for(to) - found->second->dropped_before;
  return figures;
}

// A frame keeps the tag of whatever VLAN it travels in.
void FabricState::make_monitor(ShardPort& port) const {
  port.access_vlan = 0;
  port.trunk = every_vlan_;
}

void FabricState::add_mirrors(ShardTable& table, unsigned reactor) const {
  for (const auto& [to, state] : mirrors) {
    const MirrorSet bit = MirrorSet{1} << table.mirrors.size();
    for (const PortId id : state->config.from) {
      ShardPort& port = table.ports[table.by_id[id]];
      if (state->config.direction != MirrorDirection::out) port.mirrors_in |= bit;
      if (state->config.direction == MirrorDirection::in) continue;
      port.mirrors_out |= bit;
      table.mirrors_out |= bit;
    }
    table.mirrors.push_back({to, table.by_id[to], &state->counters[reactor].counters});
  }
  for (const ShardMirror& mirror : table.mirrors) table.by_id[mirror.id] = ShardTable::absent;
}

}  // namespace millrace::vswitch

#include "switch/fabric_state.hpp"

#include <algorithm>
#include <utility>

#include "base/clock.hpp"

namespace millrace::vswitch {

std::function<void()> when_all(unsigned count, std::function<void()> done) {
  auto left = std::make_shared<unsigned>(count);
  return [left, done = std::move(done)] {
    if (--*left == 0 && done) done();
  };
}

FabricState::FabricState(base::ReactorPool& reactors, const FabricConfig& fabric_config)
    : pool{reactors}, config{fabric_config} {}

std::set<std::uint16_t> FabricState::vlans_of(const PortConfig& config) {
  std::set<std::uint16_t> vlans{config.trunk.begin(), config.trunk.end()};
  if (vlans.empty() || config.access_vlan != 0) vlans.insert(config.access_vlan);
  return vlans;
}

namespace {

Endpoint endpoint_of(const PortState::Place& place, unsigned reactor) {
  Endpoint endpoint;
  endpoint.port = place.reactor == reactor ? place.port : nullptr;
  endpoint.reactor = endpoint.from = endpoint.to = static_cast<std::uint16_t>(place.reactor);
  if (!place.moving) return endpoint;
  endpoint.to = static_cast<std::uint16_t>(place.moving->to);
  endpoint.moved_at = place.moving->number;
  if (place.moving->redirected) endpoint.reactor = endpoint.to;
  if (place.moving->to == reactor) endpoint.port = &place.moving->move->waiting();
  return endpoint;
}

}  // namespace

std::unique_ptr<ShardTable> FabricState::make_table(unsigned reactor) const {
  auto table = std::make_unique<ShardTable>();
  table->number = table_number;
  table->by_id.fill(ShardTable::absent);
  table->by_vlan.fill(ShardTable::absent);
  std::map<std::uint16_t, std::vector<std::uint16_t>> members;
  for (const auto& [id, state] : ports) {
    const auto at = static_cast<std::uint16_t>(table->ports.size());
    table->by_id[id] = at;
    ShardPort port;
    port.id = id;
    port.access_vlan = state->config.access_vlan;
    port.isolated = state->config.isolated;
    port.uplink = state->config.uplink;
    port.vepa = state->config.vepa;
    port.alone = state->config.alone;
    port.partner = state->partner;
    port.quota = state->config.addresses_max;
    port.trunk = state->trunk;
    port.counters = &state->counters[reactor].counters;
    port.first_endpoint = static_cast<std::uint32_t>(table->endpoints.size());
    port.endpoint_count = static_cast<std::uint32_t>(state->endpoints.size());
    for (const auto& [slot, place] : state->endpoints) {
      Endpoint endpoint = endpoint_of(place, reactor);
      endpoint.slot = static_cast<std::uint16_t>(slot);
      endpoint.owner = at;
      table->endpoints.push_back(endpoint);
    }
    if (!state->endpoints.empty()) {
      port.choice = state->endpoints.size() == 1 ? Choice::only : Choice::spread;
    }
    if (state->steering != nullptr) add_targets(*table, port, *state->steering);
    const bool monitor = mirrors.contains(id);
    if (monitor) make_monitor(port);
    if (port.vepa && (table->vepa == ShardTable::absent || port.choice != Choice::none)) {
      table->vepa = at;
    }
    table->ports.push_back(std::move(port));
    if (state->config.alone || monitor) continue;  // nothing is flooded to it
    for (const auto vlan : vlans_of(state->config)) members[vlan].push_back(at);
  }
  add_vlans(*table, reactor, members);
  add_mirrors(*table, reactor);
  return table;
}

void FabricState::add_targets(ShardTable& table, ShardPort& port, const Steering& steering) {
  const auto endpoint_of = [&table, &port](std::uint16_t slot) {
    for (std::uint32_t i = 0; i < port.endpoint_count; ++i) {
      if (table.endpoints[port.first_endpoint + i].slot == slot) return port.first_endpoint + i;
    }
    return ShardTable::no_endpoint;
  };
  port.choice = Choice::steered;
  port.hash = steering.hash;
  port.first_target = static_cast<std::uint32_t>(table.targets.size());
  port.target_mask = steering.mask;
  for (std::size_t i = 0; i <= steering.mask; ++i) {
    table.targets.push_back(endpoint_of(steering.slots.at(i)));
  }
  table.targets.push_back(endpoint_of(steering.unclassified));
}

void FabricState::add_vlans(ShardTable& table, unsigned reactor,
                            const std::map<std::uint16_t, std::vector<std::uint16_t>>& members) {
  for (const auto& [vlan, ports_of_vlan] : members) {
    VlanMembers entry;
    entry.first = static_cast<std::uint32_t>(table.members.size());
    entry.count = static_cast<std::uint32_t>(ports_of_vlan.size());
    auto sorted = ports_of_vlan;
    const auto reactors_of = [&table](std::uint16_t at) {
      std::uint64_t reactors = 0;
      for (const Endpoint& endpoint : table.endpoints_of(table.ports[at])) {
        reactors |= std::uint64_t{1} << endpoint.reactor;
      }
      return reactors;
    };
    // One that moves is at both.
    const auto here = [&table, reactor](std::uint16_t at) {
      const auto endpoints = table.endpoints_of(table.ports[at]);
      return std::any_of(endpoints.begin(), endpoints.end(), [reactor](const Endpoint& endpoint) {
        return endpoint.from == reactor || endpoint.to == reactor;
      });
    };
    const auto middle = std::stable_partition(sorted.begin(), sorted.end(), here);
    entry.local_count = static_cast<std::uint32_t>(middle - sorted.begin());
    for (const auto at : sorted) {
      entry.reactors |= reactors_of(at);
      table.members.push_back(at);
    }
    table.by_vlan[vlan] = static_cast<std::uint16_t>(table.vlans.size());
    table.vlans.push_back(entry);
  }
}

void FabricState::publish(std::function<void(Shard&)> run, Done done) {
  const auto answered = when_all(pool.size(), std::move(done));
  for (unsigned i = 0; i < pool.size(); ++i) publish_to(i, run, answered);
}

void FabricState::publish_to(unsigned reactor, std::function<void(Shard&)> run, Done done) {
  auto* shard = shards[reactor].get();
  // The old table comes back inside the command and is freed with it.
  pool.post(
      reactor,
      [shard, table = make_table(reactor), run = std::move(run)](base::Reactor&) mutable {
        shard->swap_table(table);
        if (run) run(*shard);
      },
      [self = shared_from_this(), done = std::move(done)] {
        if (!self->closed) done();
      });
}

void FabricState::on_all(const std::function<void(Shard&)>& run, const Done& done) {
  auto self = shared_from_this();
  const auto answered = when_all(pool.size(), done);
  for (unsigned i = 0; i < pool.size(); ++i) {
    pool.post(
        i, [shard = shards[i].get(), run](base::Reactor&) { run(*shard); },
        [self, answered] {
          if (!self->closed) answered();
        });
  }
}

void FabricState::walk_addresses(std::function<void(Shard&, std::size_t, std::size_t)> run,
                                 Done done, std::size_t first) {
  const std::size_t buckets = shards.front()->addresses().bucket_count();
  on_all([run, first](Shard& shard) { run(shard, first, buckets_a_command); },
         [self = shared_from_this(), run, done, first, buckets] {
           if (first + buckets_a_command < buckets) {
             self->walk_addresses(run, done, first + buckets_a_command);
           } else if (done) {
             done();
           }
         });
}

}  // namespace millrace::vswitch

#include "switch/fabric.hpp"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "switch/fabric_state.hpp"

namespace millrace::vswitch {

namespace {

constexpr std::uint16_t vlan_last = 4094;

base::Result<std::uint64_t> secret() {
  std::uint64_t seed = 0;
  if (::getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
    return base::fail_errno("cannot read random bytes");
  }
  return seed;
}

std::uint32_t ticks(std::uint64_t ns) {
  if (ns == 0) return 0;
  const auto count = base::ns_to_cycles(ns) >> MacTable::tick_shift;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(count, 4, 1u << 30));
}

bool is_unicast(const Mac& mac) {
  return (mac[0] & 1) == 0 && std::any_of(mac.begin(), mac.end(), [](auto b) { return b != 0; });
}

Fabric::Address address_of(MacKey key, PortId port, std::uint32_t age, bool is_static) {
  Fabric::Address out{};
  for (unsigned i = 0; i < out.mac.size(); ++i) {
    out.mac[i] = static_cast<std::uint8_t>(key >> (8 * i));
  }
  out.vlan = static_cast<std::uint16_t>(key >> key_vlan_shift);
  out.port = port;
  out.age_ns = base::cycles_to_ns(std::uint64_t{age} << MacTable::tick_shift);
  out.is_static = is_static;
  return out;
}

base::Result<> check(const PortConfig& config) {
  if (config.access_vlan > vlan_last) {
    return base::fail("port " + config.name + ": VLAN " + std::to_string(config.access_vlan) +
                      " is not in 0..4094");
  }
  for (const auto vlan : config.trunk) {
    if (vlan == 0 || vlan > vlan_last) {
      return base::fail("port " + config.name + ": VLAN " + std::to_string(vlan) +
                        " of its trunk is not in 1..4094");
    }
  }
  for (const Mac& mac : config.static_macs) {
    if (!is_unicast(mac)) {
      return base::fail("port " + config.name + ": a static address is not a unicast address");
    }
  }
  return {};
}

class FabricOverCommands final : public Fabric {
 public:
  explicit FabricOverCommands(std::shared_ptr<FabricState> state) : state_{std::move(state)} {}
  ~FabricOverCommands() override;

  base::Result<PortId> add_port(const PortConfig& config, Done done) override;
  void remove_port(PortId port, Done done) override;
  void add_endpoint(PortId port, unsigned slot, unsigned reactor, Port* endpoint,
                    Done done) override;
  void remove_endpoint(PortId port, unsigned slot, Done done) override;
  void move_endpoint(PortId port, unsigned slot, unsigned reactor, Handed go) override {
    state_->begin_move(port, slot, reactor, std::move(go));
  }
  void end_move(PortId port, unsigned slot, Done done) override {
    state_->end_move(port, slot, std::move(done));
  }
  std::shared_ptr<base::Handover> move_sender(unsigned reactor) override {
    return std::make_shared<SenderMove>(*state_->shards.at(reactor));
  }
  void set_steering(PortId port, std::shared_ptr<const Steering> steering, Done done) override {
    state_->ports.at(port)->steering = std::move(steering);
    state_->publish({}, std::move(done));
  }
  void pair(PortId one, PortId other, Done done) override;
  base::Result<> add_mirror(const MirrorConfig& config, Done done) override {
    return state_->add_mirror(config, std::move(done));
  }
  void remove_mirror(PortId to, Done done) override { state_->remove_mirror(to, std::move(done)); }
  [[nodiscard]] MirrorFigures mirror_figures(PortId to) const override {
    return state_->mirror_figures(to);
  }
  Bridge& bridge(unsigned reactor) override { return *state_->shards.at(reactor); }
  PortCounters& counters(PortId port, unsigned reactor) override {
    return state_->ports.at(port)->counters.at(reactor).counters;
  }
  void flush_addresses(PortId port, Done done) override;
  void list_addresses(std::function<void(std::vector<Address>)> done) override;

 private:
  void list_from(std::size_t first, std::shared_ptr<std::vector<Address>> all,
                 std::function<void(std::vector<Address>)> done);
  base::Result<PortId> free_id();
  base::Result<std::vector<MacKey>> static_keys(const PortConfig& config) const;

  std::shared_ptr<FabricState> state_;
};

FabricOverCommands::~FabricOverCommands() {
  state_->closed = true;
  for (unsigned i = 0; i < state_->pool.size(); ++i) state_->pool.at(i).stop();
}

// Ids go round, so that a number that was just given back means nothing for a long time.
base::Result<PortId> FabricOverCommands::free_id() {
  for (unsigned tries = 0; tries < ports_max; ++tries) {
    const PortId id = state_->next_id;
    state_->next_id = static_cast<PortId>((id + 1) % ports_max);
    if (!state_->ports.contains(id) && !state_->leaving.contains(id)) return id;
  }
  return base::fail("the switch has no room for another port");
}

base::Result<std::vector<MacKey>> FabricOverCommands::static_keys(const PortConfig& config) const {
  std::vector<MacKey> keys;
  if (config.alone) return keys;  // nobody looks for them
  for (const Mac& mac : config.static_macs) {
    for (const auto vlan : FabricState::vlans_of(config)) {
      const auto key = mac_key(std::as_bytes(std::span{mac}).data(), vlan);
      const auto taken = state_->statics.find(key);
      if (taken != state_->statics.end()) {
        return base::fail("port " + config.name + ": its address belongs to port " +
                          state_->ports.at(taken->second)->config.name + " already");
      }
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    }
  }
  // Half of the table at most, so that there is always a place for one (see MacTable::add_static).
  if (state_->statics.size() + keys.size() > state_->config.addresses_max / 2) {
    return base::fail("port " + config.name + ": too many static addresses");
  }
  return keys;
}

base::Result<PortId> FabricOverCommands::add_port(const PortConfig& config, Done done) {
  if (const auto valid = check(config); !valid) return base::Unexpected{valid.error()};
  auto keys = static_keys(config);
  if (!keys) return base::Unexpected{keys.error()};
  const auto id = free_id();
  if (!id) return id;

  auto port = std::make_unique<PortState>();
  port->config = config;
  port->statics = *keys;
  port->counters = std::vector<ReactorPortCounters>(state_->pool.size());
  if (!config.trunk.empty()) {
    auto trunk = std::make_shared<VlanSet>();
    for (const auto vlan : config.trunk) trunk->set(vlan);
    port->trunk = std::move(trunk);
  }
  for (const auto key : *keys) state_->statics.emplace(key, *id);
  state_->ports.emplace(*id, std::move(port));
  state_->publish(
      [keys = *keys, id = *id](Shard& shard) {
        for (const auto key : keys) CHECK(shard.addresses().add_static(key, id, shard.now()));
      },
      std::move(done));
  return *id;
}

void FabricOverCommands::remove_port(PortId id, Done done) {
  const auto found = state_->ports.find(id);
  CHECK(found != state_->ports.end() && found->second->endpoints.empty());
  for (const auto key : found->second->statics) state_->statics.erase(key);
  // Kept until no shard counts on it. The id stays taken until all that names it is out of the
  // links.
  std::shared_ptr<PortState> port = std::move(found->second);
  state_->ports.erase(found);
  for (auto& [other, its] : state_->ports) {
    if (its->partner == id) its->partner = no_port;
  }
  state_->leaving.insert(id);
  state_->publish({}, [state = state_, port, id, done, mirror = state_->leave_mirrors(id)] {
    state->on_all([](Shard& shard) { shard.drain(); },
                  [state, port, id, done] {
                    state->walk_addresses(
                        [id](Shard& shard, std::size_t first, std::size_t count) {
                          shard.addresses().flush(first, count, id, true);
                        },
                        [state, port, id, done] {
                          state->leaving.erase(id);
                          if (done) done();
                        });
                  });
  });
}

void FabricOverCommands::add_endpoint(PortId port, unsigned slot, unsigned reactor, Port* endpoint,
                                      Done done) {
  CHECK(endpoint != nullptr && reactor < state_->pool.size() && slot < 0xffff);
  auto& endpoints = state_->ports.at(port)->endpoints;
  CHECK(endpoints.emplace(slot, PortState::Place{reactor, endpoint, {}}).second);
  state_->publish({}, std::move(done));
}

void FabricOverCommands::remove_endpoint(PortId port, unsigned slot, Done done) {
  auto& endpoints = state_->ports.at(port)->endpoints;
  CHECK(endpoints.contains(slot) && !endpoints.at(slot).moving);
  endpoints.erase(slot);
  state_->publish({}, std::move(done));
}

void FabricOverCommands::pair(PortId one, PortId other, Done done) {
  PortState &first = *state_->ports.at(one), &second = *state_->ports.at(other);
  CHECK(first.config.alone && second.config.alone);
  CHECK(first.partner == no_port && second.partner == no_port);
  first.partner = other, second.partner = one;
  state_->publish({}, std::move(done));
}

void FabricOverCommands::flush_addresses(PortId port, Done done) {
  state_->walk_addresses(
      [port](Shard& shard, std::size_t first, std::size_t count) {
        shard.addresses().flush(first, count, port, false);
      },
      std::move(done));
}

void FabricOverCommands::list_addresses(std::function<void(std::vector<Address>)> done) {
  list_from(0, std::make_shared<std::vector<Address>>(), std::move(done));
}

void FabricOverCommands::list_from(std::size_t first, std::shared_ptr<std::vector<Address>> all,
                                   std::function<void(std::vector<Address>)> done) {
  constexpr auto count = FabricState::buckets_a_command;
  auto found = std::make_shared<std::vector<Address>>();
  found->reserve(count * MacTable::ways);  // room for all: the reactor never allocates
  auto* shard = state_->shards.front().get();
  state_->pool.post(
      0,
      [shard, found, first](base::Reactor&) {
        shard->addresses().for_each(
            first, count, shard->now(),
            [&found](MacKey key, PortId port, std::uint32_t age, bool is_static) {
              found->push_back(address_of(key, port, age, is_static));
            });
      },
      [this, state = state_, found, first, all = std::move(all), done = std::move(done), shard] {
        if (state->closed) return;
        all->insert(all->end(), found->begin(), found->end());
        if (first + count < shard->addresses().bucket_count()) {
          list_from(first + count, all, done);
        } else {
          done(std::move(*all));
        }
      });
}

}  // namespace

base::Result<std::unique_ptr<Fabric>> Fabric::make(base::ReactorPool& pool,
                                                   const FabricConfig& config) {
  if (pool.size() > reactors_max) return base::fail("the switch takes at most 64 reactors");
  if (config.addresses_max == 0) return base::fail("the switch needs room for addresses");
  const auto seed = secret();
  if (!seed) return base::Unexpected{seed.error()};
  auto state = std::make_shared<FabricState>(pool, config);
  const unsigned size = pool.size();
  for (unsigned i = 0; i < size * size; ++i) {
    state->links.push_back(i / size == i % size ? nullptr : std::make_unique<Link>());
  }
  const MacTableConfig table{config.addresses_max, ticks(config.ageing_ns), *seed};
  for (unsigned i = 0; i < size; ++i) {
    std::vector<Neighbour> neighbours;
    for (unsigned j = 0; j < size; ++j) {
      neighbours.push_back(
          {&pool.at(j), state->links[i * size + j].get(), state->links[j * size + i].get()});
    }
    state->shards.push_back(std::make_unique<Shard>(pool.at(i), table, std::move(neighbours)));
  }
  for (unsigned i = 0; i < size; ++i) {
    pool.post(
        i, [shard = state->shards[i].get()](base::Reactor& reactor) { reactor.add(*shard); },
        [state] {});
  }
  return std::unique_ptr<Fabric>{std::make_unique<FabricOverCommands>(std::move(state))};
}

}  // namespace millrace::vswitch

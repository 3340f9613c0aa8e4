// FabricState: what control knows of the switch, and the shards and links it made. Shared by the
// Fabric and the commands it has sent, so that an answer that comes late finds it alive. Thread:
// control. Shards and links are used by their reactors.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "base/reactor_pool.hpp"
#include "switch/endpoint_move.hpp"
#include "switch/fabric.hpp"
#include "switch/shard.hpp"

namespace millrace::vswitch {

// Calls `done`, if there is one, at the last of `count` calls.
[[nodiscard]] std::function<void()> when_all(unsigned count, std::function<void()> done);

struct alignas(64) ReactorPortCounters {
  PortCounters counters;
};

struct PortState {
  struct Moving {
    unsigned to;
    std::uint16_t number;  // of the first table that sends there
    bool redirected;       // that one is out
    std::shared_ptr<EndpointMove> move;
  };
  struct Place {
    unsigned reactor;
    Port* port;
    std::optional<Moving> moving;
  };
  PortConfig config;
  PortId partner = no_port;
  std::shared_ptr<const VlanSet> trunk;  // nullptr: an access port
  std::vector<MacKey> statics;
  std::map<unsigned, Place> endpoints;        // by slot
  std::shared_ptr<const Steering> steering;   // nullptr: flows are spread
  std::vector<ReactorPortCounters> counters;  // by reactor
};

struct alignas(64) ReactorMirrorCounters {
  MirrorCounters counters;
};

struct MirrorState {
  MirrorConfig config;
  std::uint64_t dropped_before = 0;             // at its destination
  std::vector<ReactorMirrorCounters> counters;  // by reactor
};

class FabricState : public std::enable_shared_from_this<FabricState> {
 public:
  using Done = Fabric::Done;

  FabricState(base::ReactorPool& reactors, const FabricConfig& fabric_config);

  // Swaps in new tables on all shards; there, `run(Shard&)` follows in the same command.
  void publish(std::function<void(Shard&)> run, Done done);
  // The same on one of them.
  void publish_to(unsigned reactor, std::function<void(Shard&)> run, Done done);
  // Fabric::move_endpoint, end_move.
  void begin_move(PortId id, unsigned slot, unsigned reactor, Fabric::Handed go);
  void end_move(PortId id, unsigned slot, Done done);
  // fabric_mirror.cpp: Fabric::add_mirror, remove_mirror, mirror_figures; and those of a port that
  // goes.
  base::Result<> add_mirror(const MirrorConfig& mirror, Done done);
  void remove_mirror(PortId to, Done done);
  [[nodiscard]] MirrorFigures mirror_figures(PortId to) const;
  [[nodiscard]] std::shared_ptr<MirrorState> leave_mirrors(PortId port);
  // Runs `run(Shard&)` on every reactor; `done` when all have answered.
  void on_all(const std::function<void(Shard&)>& run, const Done& done);
  // Runs `run(Shard&, first, count)` over all address buckets of every shard, in short commands.
  void walk_addresses(std::function<void(Shard&, std::size_t, std::size_t)> run, Done done,
                      std::size_t first = 0);

  // Which VLANs a port's frames may travel in.
  [[nodiscard]] static std::set<std::uint16_t> vlans_of(const PortConfig& config);

  static constexpr std::size_t buckets_a_command = 2048;

  base::ReactorPool& pool;
  FabricConfig config;
  bool closed = false;
  std::map<PortId, std::unique_ptr<PortState>> ports;
  std::map<MacKey, PortId> statics;
  std::map<PortId, std::shared_ptr<MirrorState>> mirrors;  // by destination
  std::set<PortId> leaving;  // ids that something in a link may still name
  PortId next_id = 0;
  std::uint16_t table_number = 0;
  bool move_begins = false;
  std::deque<std::function<void()>> waiting_moves;
  std::vector<std::unique_ptr<Link>> links;    // [from * size + to]
  std::vector<std::unique_ptr<Shard>> shards;  // by reactor

 private:
  void redirect(PortId id, unsigned slot, const std::shared_ptr<EndpointMove>& move);
  [[nodiscard]] std::unique_ptr<ShardTable> make_table(unsigned reactor) const;
  [[nodiscard]] std::string refusal(const MirrorConfig& mirror) const;
  [[nodiscard]] std::uint64_t dropped_for(PortId port) const;
  void make_monitor(ShardPort& port) const;
  void add_mirrors(ShardTable& table, unsigned reactor) const;
  static void add_targets(ShardTable& table, ShardPort& port, const Steering& steering);
  const std::shared_ptr<const VlanSet> every_vlan_ =
      std::make_shared<const VlanSet>(VlanSet{}.set());
  static void add_vlans(ShardTable& table, unsigned reactor,
                        const std::map<std::uint16_t, std::vector<std::uint16_t>>& members);
};

}  // namespace millrace::vswitch

// ShardTable: what one reactor's Bridge knows about ports, VLANs and endpoints.
//
// Control builds a new table for every change and swaps it in by command; the old one comes back
// and is freed on control. The shard writes nothing in it but the burst scratch of its own
// endpoints. Ports are found by id; everything else refers to ports by position in `ports`.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "switch/counters.hpp"
#include "switch/mirror.hpp"
#include "switch/packet.hpp"
#include "switch/port.hpp"
#include "switch/steering.hpp"
#include "switch/vlan_set.hpp"

namespace millrace::vswitch {

struct Endpoint {
  // nullptr on every shard but its own. While it moves, that of the old owner for what is still on
  // its way there, and that of the new one.
  Port* port = nullptr;
  std::uint16_t slot = 0;
  std::uint16_t reactor = 0;  // where this shard sends what is for it
  // While it moves (endpoint_move.hpp): tables from number `moved_at` on send to `to`, those before
  // to `from`. Else both are `reactor`.
  std::uint16_t from = 0, to = 0, moved_at = 0;
  std::uint16_t owner = 0;  // position in ports
  // Scratch of the burst in progress: which packets go here, untagged and tagged.
  std::uint32_t plain = 0, tagged = 0;
  Endpoint* next = nullptr;  // list of touched endpoints

  // Which reactor delivers to it what a shard with that table flooded.
  [[nodiscard]] std::uint16_t owner_at(std::uint16_t table) const noexcept {
    return static_cast<std::int16_t>(table - moved_at) < 0 ? from : to;
  }
};

// How a port picks the endpoint of a packet: settled when the table is made.
enum class Choice : std::uint8_t { none, only, spread, steered };

struct ShardPort {
  PortId id = no_port;
  std::uint16_t access_vlan = 0;
  bool isolated = false;
  bool uplink = false, vepa = false;
  bool alone = false;
  PortId partner = no_port;  // of one that is alone
  std::uint32_t quota = 0;
  std::shared_ptr<const VlanSet> trunk;  // nullptr: an access port
  PortCounters* counters = nullptr;      // of this reactor
  std::uint32_t first_endpoint = 0, endpoint_count = 0;
  Choice choice = Choice::none;
  // Steered: the hash, and where in `targets` this port's table lies. Its last entry is for packets
  // without a hash.
  std::shared_ptr<const PacketHash> hash;
  std::uint32_t first_target = 0, target_mask = 0;
  MirrorSet mirrors_in = 0, mirrors_out = 0;  // of what it sends, and of what is for it

  [[nodiscard]] bool is_in(std::uint16_t vlan) const noexcept {
    return vlan == access_vlan ? takes_untagged() : trunk != nullptr && trunk->test(vlan);
  }
  // What it does with untagged frames: 0 on a trunk means that there is no native VLAN.
  [[nodiscard]] bool takes_untagged() const noexcept { return !trunk || access_vlan != 0; }
  [[nodiscard]] bool tags(std::uint16_t vlan) const noexcept {
    return trunk != nullptr && vlan != access_vlan;
  }
};

struct VlanMembers {
  std::uint32_t first = 0, count = 0;  // in `members`
  std::uint32_t local_count = 0;       // the first ones have an endpoint on this reactor
  std::uint64_t reactors = 0;          // reactors with an endpoint of a member
};

struct ShardMirror {
  PortId id = no_port;
  std::uint16_t to = 0;                // position in ports
  MirrorCounters* counters = nullptr;  // of this reactor
};

struct ShardTable {
  static constexpr std::uint16_t absent = 0xffff;

  std::uint16_t number = 0;  // counts endpoints that began to move; goes round
  // The port by which guests reach each other, by position: one with an endpoint where there is
  // one. Absent: they do so here.
  std::uint16_t vepa = absent;
  std::array<std::uint16_t, ports_max> by_id;
  std::array<std::uint16_t, vlans_max> by_vlan;
  std::vector<ShardPort> ports;
  std::vector<Endpoint> endpoints;  // grouped by port, ordered by slot
  std::vector<VlanMembers> vlans;
  std::vector<std::uint16_t> members;  // positions in ports, grouped by VLAN
  static constexpr std::uint32_t no_endpoint = 0xffff'ffff;
  std::vector<std::uint32_t> targets;  // positions in endpoints, or none; grouped by port
  // A mirror's destination is not found by its id: nothing but copies gets there.
  std::vector<ShardMirror> mirrors;  // a MirrorSet's bits
  MirrorSet mirrors_out = 0;         // of all ports

  [[nodiscard]] ShardPort* find(PortId id) noexcept {
    if (id >= ports_max || by_id[id] == absent) return nullptr;
    return &ports[by_id[id]];
  }
  // The destination of a mirror.
  [[nodiscard]] ShardPort* find_monitor(PortId id) noexcept {
    for (const ShardMirror& mirror : mirrors) {
      if (mirror.id == id) return &ports[mirror.to];
    }
    return nullptr;
  }
  [[nodiscard]] const VlanMembers* find_vlan(std::uint16_t vlan) const noexcept {
    return by_vlan[vlan] == absent ? nullptr : &vlans[by_vlan[vlan]];
  }
  [[nodiscard]] std::span<Endpoint> endpoints_of(const ShardPort& port) noexcept {
    return {endpoints.data() + port.first_endpoint, port.endpoint_count};
  }
};

}  // namespace millrace::vswitch

// Shard: the Bridge of one reactor. See bridge.hpp for what it promises and shard_table.hpp for
// what it knows. A burst goes through in three steps: every packet is judged and marked at its
// receivers (or copied into a link), then every receiver is called once, then sleeping reactors are
// woken. Threads: made by control; everything else on its reactor.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/reactor.hpp"
#include "switch/bridge.hpp"
#include "switch/header.hpp"
#include "switch/link.hpp"
#include "switch/mac_table.hpp"
#include "switch/shard_table.hpp"
#include "switch/tag.hpp"

namespace millrace::vswitch {

// This shard's ends of the links with one other reactor.
struct Neighbour {
  base::Reactor* reactor = nullptr;
  Link* to = nullptr;
  Link* from = nullptr;
};

class Shard final : public Bridge {
 public:
  // `neighbours` holds one for every reactor of the pool; its own has no links.
  Shard(base::Reactor& reactor, const MacTableConfig& config, std::vector<Neighbour> neighbours);

  void forward(PortId ingress, std::span<Packet> packets) noexcept override;
  void forward_apart(PortId ingress, std::span<Packet> packets) noexcept override;
  [[nodiscard]] bool mirrors_direct(PortId ingress) const noexcept override;
  void mirror_direct(PortId ingress, std::span<Packet> packets) noexcept override;
  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override {}

  // Commands, on the reactor between rounds.
  void swap_table(std::unique_ptr<ShardTable>& table) noexcept { table_.swap(table); }
  [[nodiscard]] MacTable& addresses() noexcept { return addresses_; }
  // Takes in all that other reactors had sent before: afterwards nothing in the links is older than
  // this call.
  void drain() noexcept;
  // How much was sent to each reactor so far; and whether all of that has been delivered.
  void note_sent(std::span<std::uint64_t> sent) const noexcept;
  [[nodiscard]] bool delivered(std::span<const std::uint64_t> sent) noexcept;
  [[nodiscard]] std::uint32_t now() const noexcept {
    return static_cast<std::uint32_t>(reactor_.round_cycles() >> MacTable::tick_shift);
  }

 private:
  static constexpr unsigned events_per_visit = 64, sweep_max = 256;

  // Both addresses of a frame.
  struct Stations {
    explicit Stations(const Packet& packet) noexcept {
      std::memcpy(&low, packet.header.data(), sizeof low);
      std::memcpy(&high, packet.header.data() + sizeof low, sizeof high);
    }
    Stations() = default;
    bool operator==(const Stations&) const noexcept = default;
    std::uint64_t low = 0;
    std::uint32_t high = 0;
  };

  // Where a packet of a burst went. Its neighbours are mostly of the same two stations: they go
  // there without another look, within the burst.
  struct Verdict {
    Stations stations;
    std::uint16_t vlan = 0;
    bool tagged = false;
    MirrorSet mirrors = 0;
    Endpoint* endpoint = nullptr;  // on this reactor; nullptr: nothing is known
  };

  // Step 1. What it costs to note who wants copies (in wanted_) is paid only where somebody might,
  // and what tags cost that may be apart only where they may.
  template <bool apart>
  void enter(PortId ingress, std::span<Packet> packets) noexcept;
  template <bool apart>
  void prefetch(const ShardPort& from, std::span<const Packet> packets) noexcept;
  template <bool mirrors, bool apart>  // answers their bytes
  std::uint64_t judge_all(ShardPort& from, std::span<Packet> packets) noexcept;
  template <bool mirrors, bool apart>
  void judge(ShardPort& from, std::span<Packet> packets, unsigned at) noexcept;
  // VEPA: the port whose guest sent what comes back by `from`; nullptr: that is not what came.
  [[nodiscard]] const ShardPort* sender_of(const ShardPort& from, const Packet& packet) noexcept;
  // Whether what came from `from`, and before that from `sender`, may not go to `to`.
  [[nodiscard]] bool parted(const ShardPort& from, const ShardPort* sender,
                            const ShardPort& to) const noexcept;
  template <bool mirrors>
  void forward_alone(ShardPort& from, Packet& packet, unsigned at) noexcept;
  template <bool mirrors>
  Endpoint* forward_one(ShardPort& from, Packet& packet, unsigned at) noexcept;
  template <bool apart>
  [[nodiscard]] bool admit(const ShardPort& from, Packet& packet) const noexcept;
  // Counts it where it is not the port's.
  template <bool apart>
  [[nodiscard]] static bool classify_vlan(const ShardPort& from, Packet& packet) noexcept;
  enum class TagOf : std::uint8_t {
    ours,
    others,  // of a VLAN that the port is not in, or untagged where it takes no such frame
    cut,     // in the middle
  };
  // Finds the VLAN that the packet travels in and takes its tag off, where a device has not.
  template <bool apart>
  [[nodiscard]] static TagOf take_tag(const ShardPort& from, Packet& packet) noexcept;
  // Forbidden: the packet is dropped, and counted.
  [[nodiscard]] MacTable::Learned learn(const ShardPort& from, const Packet& packet) noexcept;
  void tell(const LearnEvent& event) noexcept;
  // Each returns the packet's only receiver where that is an endpoint of this reactor which nothing
  // but ports, addresses and VLAN chose; else nullptr.
  template <bool mirrors>
  Endpoint* unicast(ShardPort& from, ShardPort& to, Packet& packet, unsigned at) noexcept;
  template <bool mirrors>
  Endpoint* flood(const ShardPort& from, Packet& packet, unsigned at) noexcept;
  // `table`: the number of the table by which it was flooded.
  Endpoint* flood_here(const ShardPort& from, Packet& packet, unsigned at,
                       std::uint16_t table) noexcept;
  void count_lost_flood(const ShardPort& from, Packet& packet, unsigned reactor) noexcept;
  // nullptr: the port has no endpoint for it.
  [[nodiscard]] Endpoint* choose(const ShardPort& port, Packet& packet) noexcept;
  [[nodiscard]] Endpoint* steer(const ShardPort& port, const Packet& packet) noexcept;
  void mark(Endpoint& endpoint, const Packet& packet, unsigned at) noexcept;
  void mark(Endpoint& endpoint, bool tagged, unsigned at) noexcept;
  [[nodiscard]] bool send(unsigned reactor, const Packet& packet, PortId port,
                          std::uint16_t slot) noexcept;
  // shard_mirror.cpp: marks the burst's packets at the destinations of the mirrors that want them.
  void mirror(std::span<Packet> packets) noexcept;
  void copy_to(const ShardMirror& mirror, Packet& packet, unsigned at) noexcept;
  [[nodiscard]] bool send_copy(const Endpoint& endpoint, const Packet& packet, PortId to) noexcept;
  [[nodiscard]] MirrorSet mirrors_of_flood(const ShardPort& from, const Packet& packet) noexcept;
  [[nodiscard]] MirrorSet mirrors_of_pair(PortId ingress) const noexcept;
  // Of a port that is not there any more, or is a mirror's destination.
  void refuse(PortId ingress, std::span<const Packet> packets) noexcept;
  // Step 2: `packet_at(i)` is packet i of the burst.
  void deliver_burst(std::span<Packet> packets) noexcept;
  template <class PacketAt>
  void deliver(PacketAt packet_at) noexcept;
  template <class PacketAt>
  void deliver_to(Endpoint& endpoint, std::uint32_t mask, PacketAt packet_at,
                  bool apart = false) noexcept;
  // Step 3.
  void wake() noexcept;

  bool receive(Link& link) noexcept;
  void accept(Parcel& parcel, unsigned at) noexcept;
  bool hear(Link& link) noexcept;
  void sweep() noexcept;

  base::Reactor& reactor_;
  const unsigned index_;
  std::unique_ptr<ShardTable> table_;
  MacTable addresses_;
  const std::uint32_t sweep_ticks_;  // the whole table is swept once in this time
  std::uint32_t swept_at_ = 0;
  std::size_t sweep_next_ = 0;
  std::vector<Neighbour> neighbours_;
  std::unique_ptr<ParcelPool> pool_;  // nullptr where there is one reactor
  Endpoint* touched_ = nullptr;
  Verdict last_;
  std::uint64_t wake_ = 0;  // reactors to wake
  std::array<MirrorSet, burst_max> wanted_;
  std::array<Spill, burst_max> spills_;
};

template <bool apart>
Shard::TagOf Shard::take_tag(const ShardPort& from, Packet& packet) noexcept {
  // VLAN 0 is a priority alone: the frame counts as untagged.
  const auto takes = [&from](std::uint16_t vlan) {
    return vlan == 0 || (from.trunk != nullptr && from.trunk->test(vlan));
  };
  std::uint16_t vlan = 0;
  if (apart && packet.tag_apart) {
    vlan = packet.vlan;
    if (!takes(vlan)) return TagOf::others;
  } else {
    const auto type = load16(packet, ethernet::addresses_size);
    packet.priority = 0;
    if (ethernet::is_tag(type)) {
      if (packet.header_size < ethernet::header_size + ethernet::tag_size) return TagOf::cut;
      const auto control = load16(packet, ethernet::header_size);
      vlan = control & 0xfff;
      packet.priority = static_cast<std::uint8_t>(control >> 12);
      if (type != ethernet::customer_tag || !takes(vlan)) return TagOf::others;
      strip_tag(packet);
    }
  }
  if (vlan == 0) {
    if (!from.takes_untagged()) return TagOf::others;
    vlan = from.access_vlan;
  }
  packet.vlan = vlan;
  return TagOf::ours;
}

}  // namespace millrace::vswitch

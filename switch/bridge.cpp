#include "switch/bridge.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.hpp"
#include "switch/gso.hpp"
#include "switch/header.hpp"
#include "switch/shard.hpp"

namespace millrace::vswitch {

namespace {

static_assert(burst_max <= 32, "a burst is a 32-bit mask");

[[nodiscard]] bool is_group(const std::byte* address) noexcept {
  return (address[0] & std::byte{1}) != std::byte{0};
}

// 01:80:c2:00:00:00 to 0f: pause frames, spanning tree, LACP, LLDP.
[[nodiscard]] bool is_reserved(const std::byte* address) noexcept {
  return (mac_key(address, 0) & 0xf0ff'ffff'ffffull) == 0x0000'00c2'8001ull;
}

// The VLAN that an untagged or once tagged frame is going to travel in.
template <bool apart>
[[nodiscard]] std::uint16_t vlan_hint(const Packet& packet, std::uint16_t access) noexcept {
  if (apart && packet.tag_apart) return packet.vlan == 0 ? access : packet.vlan;
  if (load16(packet, ethernet::addresses_size) != ethernet::customer_tag) return access;
  const std::uint16_t vlan = load16(packet, ethernet::header_size) & 0xfff;
  return vlan == 0 ? access : vlan;
}

}  // namespace

Shard::Shard(base::Reactor& reactor, const MacTableConfig& config,
             std::vector<Neighbour> neighbours)
    : reactor_{reactor},
      index_{reactor.index()},
      table_{std::make_unique<ShardTable>()},
      addresses_{config},
      sweep_ticks_{config.ageing_ticks == 0 ? 1u << 20 : std::max(1u, config.ageing_ticks / 4)},
      neighbours_{std::move(neighbours)} {
  table_->by_id.fill(ShardTable::absent);
  table_->by_vlan.fill(ShardTable::absent);
  if (neighbours_.size() > 1) pool_ = std::make_unique<ParcelPool>();
}

void Shard::forward(PortId ingress, std::span<Packet> packets) noexcept {
  enter<false>(ingress, packets);
}

void Shard::forward_apart(PortId ingress, std::span<Packet> packets) noexcept {
  enter<true>(ingress, packets);
}

template <bool apart>
void Shard::enter(PortId ingress, std::span<Packet> packets) noexcept {
  ShardPort* from = table_->find(ingress);
  if (from == nullptr) return refuse(ingress, packets);
  const bool mirrored = (from->mirrors_in | table_->mirrors_out) != 0;
  while (!packets.empty()) {
    const auto burst = packets.first(std::min(packets.size(), burst_max));
    std::uint64_t bytes = 0;
    last_.endpoint = nullptr;
    if (burst.size() > 1 && addresses_.large()) prefetch<apart>(*from, burst);
    if (!mirrored) [[likely]] {
      bytes = judge_all<false, apart>(*from, burst);
    } else {
      bytes = judge_all<true, apart>(*from, burst);
      mirror(burst);
    }
    from->counters->tx_packets.add(burst.size());
    from->counters->tx_bytes.add(bytes);
    deliver_burst(burst);
    packets = packets.subspan(burst.size());
  }
  if (wake_ != 0) wake();
}

template <bool mirrors, bool apart>
std::uint64_t Shard::judge_all(ShardPort& from, std::span<Packet> packets) noexcept {
  std::uint64_t bytes = 0;
  for (unsigned at = 0; at < packets.size(); ++at) {
    bytes += packets[at].length;
    if (apart && packets[at].tag_apart) bytes += ethernet::tag_size;
    judge<mirrors, apart>(from, packets, at);
  }
  return bytes;
}

// Asks for what the look-ups will read, but for packets of the same stations as the one before.
template <bool apart>
void Shard::prefetch(const ShardPort& from, std::span<const Packet> packets) noexcept {
  Stations before;
  for (const Packet& packet : packets) {
    const Stations stations{packet};
    if (stations == before) continue;
    before = stations;
    const std::uint16_t vlan = vlan_hint<apart>(packet, from.access_vlan);
    addresses_.prefetch(mac_key(packet.header.data(), vlan), now());
    addresses_.prefetch(mac_key(packet.header.data() + 6, vlan), now());
  }
}

// Judges packet `at`: drops and counts it, or marks it at its receivers.
template <bool mirrors, bool apart>
void Shard::judge(ShardPort& from, std::span<Packet> packets, unsigned at) noexcept {
  Packet& packet = packets[at];
  packet.source = from.id;
  if constexpr (mirrors) wanted_[at] = 0;
  if (!admit<apart>(from, packet)) return;
  if (from.alone) return forward_alone<mirrors>(from, packet, at);
  const Stations stations{packet};
  if (last_.endpoint != nullptr && last_.stations == stations && last_.vlan == packet.vlan) {
    if constexpr (mirrors) wanted_[at] = last_.mirrors;
    return mark(*last_.endpoint, last_.tagged, at);
  }
  last_.endpoint = nullptr;
  const auto learned = learn(from, packet);
  if (learned == MacTable::Learned::forbidden) return;
  if constexpr (mirrors) wanted_[at] = from.mirrors_in;
  Endpoint* only = forward_one<mirrors>(from, packet, at);
  if (only == nullptr || learned == MacTable::Learned::refused) return;  // those are counted
  last_ = {stations, packet.vlan, table_->ports[only->owner].tags(packet.vlan), 0, only};
  if constexpr (mirrors) last_.mirrors = wanted_[at];
}

// Whatever its addresses are.
template <bool mirrors>
void Shard::forward_alone(ShardPort& from, Packet& packet, unsigned at) noexcept {
  if constexpr (mirrors) wanted_[at] = from.mirrors_in;
  ShardPort* to = table_->find(from.partner);
  if (to == nullptr) return from.counters->drop_isolated.add();
  if (!to->is_in(packet.vlan)) return from.counters->drop_vlan.add();
  static_cast<void>(unicast<mirrors>(from, *to, packet, at));
}

template <bool mirrors>
Endpoint* Shard::forward_one(ShardPort& from, Packet& packet, unsigned at) noexcept {
  const std::byte* destination = packet.header.data();
  if (is_group(destination)) return flood<mirrors>(from, packet, at);
  const PortId to_id = addresses_.find(mac_key(destination, packet.vlan), now());
  ShardPort* to = table_->find(to_id);
  return to == nullptr ? flood<mirrors>(from, packet, at) : unicast<mirrors>(from, *to, packet, at);
}

const ShardPort* Shard::sender_of(const ShardPort& from, const Packet& packet) noexcept {
  if (!from.vepa) return nullptr;
  const MacKey source = mac_key(packet.header.data() + 6, packet.vlan);
  const ShardPort* home = table_->find(addresses_.find(source, now()));
  return home == nullptr || home->uplink ? nullptr : home;
}

bool Shard::parted(const ShardPort& from, const ShardPort* sender,
                   const ShardPort& to) const noexcept {
  const bool isolated = from.isolated || (sender != nullptr && sender->isolated);
  const bool both_guests = table_->vepa != ShardTable::absent && !from.uplink && !to.uplink;
  return &to == &from || &to == sender || (isolated && to.isolated) || both_guests;
}

// Shape, offload request, reserved addresses, VLAN.
template <bool apart>
inline bool Shard::admit(const ShardPort& from, Packet& packet) const noexcept {
  const bool shape = packet.header_size >= ethernet::header_size &&
                     packet.header_size <= Packet::header_max &&
                     packet.header_size <= packet.length && packet.length <= Packet::length_max;
  if (!shape || !(packet.offload.done() || validate_offload(packet))) {
    from.counters->drop_malformed.add();
    return false;
  }
  if (is_reserved(packet.header.data())) {
    from.counters->drop_reserved.add();
    return false;
  }
  if (!classify_vlan<apart>(from, packet)) return false;
  // To whatever address: a bond's driver takes any such frame for its partner's.
  if (load16(packet, ethernet::addresses_size) == ethernet::slow_protocols) {
    from.counters->drop_reserved.add();
    return false;
  }
  return true;
}

template <bool apart>
inline bool Shard::classify_vlan(const ShardPort& from, Packet& packet) noexcept {
  const TagOf tag = take_tag<apart>(from, packet);
  if (tag == TagOf::ours) [[likely]]
    return true;
  (tag == TagOf::cut ? from.counters->drop_malformed : from.counters->drop_vlan).add();
  return false;
}

// Checks and learns the source address.
MacTable::Learned Shard::learn(const ShardPort& from, const Packet& packet) noexcept {
  using Learned = MacTable::Learned;
  const std::byte* source = packet.header.data() + 6;
  const MacKey key = mac_key(source, packet.vlan);
  const bool usable = !is_group(source) && mac_key(source, 0) != 0;
  if (from.vepa && sender_of(from, packet) != nullptr) return Learned::known;  // it lives there
  const Learned learned =
      usable ? addresses_.learn(key, from.id, from.quota, now()) : Learned::forbidden;
  if (learned == Learned::news) tell({key, from.id});
  if (learned == Learned::refused) from.counters->learn_refused.add();
  if (learned == Learned::forbidden) from.counters->drop_source.add();
  return learned;
}

// Tells the other shards. One that cannot be told now is told with the next frame.
void Shard::tell(const LearnEvent& event) noexcept {
  for (unsigned i = 0; i < neighbours_.size(); ++i) {
    if (i == index_) continue;
    if (!neighbours_[i].to->tell(event)) addresses_.forget_stamp(event.key, now());
    wake_ |= std::uint64_t{1} << i;
  }
}

template <bool mirrors>
Endpoint* Shard::unicast(ShardPort& from, ShardPort& to, Packet& packet, unsigned at) noexcept {
  const ShardPort* sender = sender_of(from, packet);
  if (&to == &from || &to == sender) return from.counters->drop_hairpin.add(), nullptr;
  const bool isolated = from.isolated || (sender != nullptr && sender->isolated);
  if (isolated && to.isolated) return from.counters->drop_isolated.add(), nullptr;
  if (table_->vepa != ShardTable::absent && !from.uplink && !to.uplink) {
    ShardPort& out = table_->ports[table_->vepa];
    if (!out.is_in(packet.vlan)) return from.counters->drop_vlan.add(), nullptr;
    return unicast<mirrors>(from, out, packet, at);
  }
  Endpoint* endpoint = choose(to, packet);
  if (endpoint == nullptr) return to.counters->drop_no_queue.add(), nullptr;
  if constexpr (mirrors) wanted_[at] |= to.mirrors_out;
  if (endpoint->reactor == index_) {
    mark(*endpoint, packet, at);
    return to.choice == Choice::only ? endpoint : nullptr;
  }
  if (!send(endpoint->reactor, packet, to.id, endpoint->slot)) to.counters->drop_link_full.add();
  return nullptr;
}

// To every member of the packet's VLAN but its own port: marks the members here, and sends one copy
// to each reactor that has others.
template <bool mirrors>
Endpoint* Shard::flood(const ShardPort& from, Packet& packet, unsigned at) noexcept {
  const VlanMembers* vlan = table_->find_vlan(packet.vlan);
  if (vlan == nullptr) return nullptr;
  if constexpr (mirrors) wanted_[at] |= mirrors_of_flood(from, packet);
  Endpoint* only = flood_here(from, packet, at, table_->number);
  const std::uint64_t others = vlan->reactors & ~(std::uint64_t{1} << index_);
  for (std::uint64_t left = others; left != 0; left &= left - 1) {
    const auto reactor = static_cast<unsigned>(std::countr_zero(left));
    // The slot of one that is for all is the number of the table.
    if (!send(reactor, packet, no_port, table_->number)) count_lost_flood(from, packet, reactor);
  }
  return others == 0 ? only : nullptr;
}

Endpoint* Shard::flood_here(const ShardPort& from, Packet& packet, unsigned at,
                            std::uint16_t table) noexcept {
  const VlanMembers* vlan = table_->find_vlan(packet.vlan);
  if (vlan == nullptr) return nullptr;
  const ShardPort* sender = sender_of(from, packet);
  Endpoint* only = nullptr;
  unsigned receivers = 0;
  for (std::uint32_t i = 0; i < vlan->local_count; ++i) {
    const ShardPort& to = table_->ports[table_->members[vlan->first + i]];
    if (parted(from, sender, to)) continue;
    Endpoint* endpoint = choose(to, packet);
    ++receivers;
    if (endpoint == nullptr) {
      // Every reactor with one of its endpoints comes here; one of them counts.
      if (table_->endpoints[to.first_endpoint].reactor == index_) to.counters->drop_no_queue.add();
      continue;
    }
    if (endpoint->owner_at(table) != index_) continue;
    mark(*endpoint, packet, at);
    only = to.choice == Choice::only ? endpoint : nullptr;
  }
  return receivers == 1 ? only : nullptr;
}

void Shard::count_lost_flood(const ShardPort& from, Packet& packet, unsigned reactor) noexcept {
  const VlanMembers& vlan = *table_->find_vlan(packet.vlan);
  const ShardPort* sender = sender_of(from, packet);
  for (std::uint32_t i = 0; i < vlan.count; ++i) {
    const ShardPort& to = table_->ports[table_->members[vlan.first + i]];
    if (parted(from, sender, to)) continue;
    const Endpoint* endpoint = choose(to, packet);
    if (endpoint != nullptr && endpoint->reactor == reactor) to.counters->drop_link_full.add();
  }
}

// Every packet of a flow goes to the same endpoint of a port, on whichever shard it entered.
Endpoint* Shard::choose(const ShardPort& port, Packet& packet) noexcept {
  Endpoint* first = table_->endpoints.data() + port.first_endpoint;
  if (port.choice == Choice::only) return first;
  if (port.choice == Choice::spread) {
    if (packet.flow_hash == 0) packet.flow_hash = flow_hash(packet);
    return first + ((std::uint64_t{packet.flow_hash} * port.endpoint_count) >> 32);
  }
  return port.choice == Choice::steered ? steer(port, packet) : nullptr;
}

Endpoint* Shard::steer(const ShardPort& port, const Packet& packet) noexcept {
  const auto hash = port.hash->of(packet);
  const std::uint32_t entry = hash.kind != 0 ? hash.value & port.target_mask : port.target_mask + 1;
  const std::uint32_t target = table_->targets[port.first_target + entry];
  return target == ShardTable::no_endpoint ? nullptr : &table_->endpoints[target];
}

void Shard::mark(Endpoint& endpoint, const Packet& packet, unsigned at) noexcept {
  mark(endpoint, table_->ports[endpoint.owner].tags(packet.vlan), at);
}

void Shard::mark(Endpoint& endpoint, bool tagged, unsigned at) noexcept {
  if ((endpoint.plain | endpoint.tagged) == 0) {
    endpoint.next = touched_;
    touched_ = &endpoint;
  }
  (tagged ? endpoint.tagged : endpoint.plain) |= 1u << at;
}

bool Shard::send(unsigned reactor, const Packet& packet, PortId port, std::uint16_t slot) noexcept {
  wake_ |= std::uint64_t{1} << reactor;
  Link& link = *neighbours_[reactor].to;
  link.reclaim(*pool_);
  return link.send(*pool_, packet, port, slot);
}

// Untagged receivers first, and those that put tags on by themselves; then the packets that anybody
// else wants tagged get their tag in place.
template <class PacketAt>
void Shard::deliver(PacketAt packet_at) noexcept {
  std::uint32_t wanted = 0;
  for (Endpoint* e = touched_; e != nullptr; e = e->next) {
    deliver_to(*e, std::exchange(e->plain, 0), packet_at);
    if (e->tagged == 0) continue;
    if (e->port->tags_by_itself()) {
      deliver_to(*e, std::exchange(e->tagged, 0), packet_at, true);
    } else {
      wanted |= e->tagged;
    }
  }
  std::uint32_t failed = 0;
  for (std::uint32_t left = wanted; left != 0; left &= left - 1) {
    const auto at = static_cast<unsigned>(std::countr_zero(left));
    if (!insert_tag(packet_at(at), spills_[at])) failed |= 1u << at;
  }
  for (Endpoint* e = std::exchange(touched_, nullptr); e != nullptr; e = e->next) {
    const std::uint32_t mask = std::exchange(e->tagged, 0);
    if (mask == 0) continue;
    table_->ports[e->owner].counters->drop_too_long.add(
        static_cast<unsigned>(std::popcount(mask & failed)));
    deliver_to(*e, mask & ~failed, packet_at);
  }
}

void Shard::deliver_burst(std::span<Packet> packets) noexcept {
  deliver([packets](unsigned at) -> Packet& { return packets[at]; });
}

template <class PacketAt>
void Shard::deliver_to(Endpoint& endpoint, std::uint32_t mask, PacketAt packet_at,
                       bool apart) noexcept {
  if (mask == 0) return;
  std::array<const Packet*, burst_max> packets;
  std::size_t count = 0;
  for (; mask != 0; mask &= mask - 1) {
    packets[count++] = &packet_at(static_cast<unsigned>(std::countr_zero(mask)));
  }
  const std::span all{packets.data(), count};
  apart ? endpoint.port->deliver_apart(all) : endpoint.port->deliver(all);
}

void Shard::wake() noexcept {
  for (std::uint64_t left = std::exchange(wake_, 0); left != 0; left &= left - 1) {
    neighbours_[static_cast<unsigned>(std::countr_zero(left))].reactor->wake();
  }
}

bool Shard::poll() noexcept {
  bool busy = false;
  for (unsigned i = 0; i < neighbours_.size(); ++i) {
    if (i == index_) continue;
    // Addresses first: what was learned before a packet was sent is known before it arrives.
    busy |= hear(*neighbours_[i].from);
    busy |= receive(*neighbours_[i].from);
  }
  sweep();
  return busy;
}

void Shard::drain() noexcept {
  for (unsigned i = 0; i < neighbours_.size(); ++i) {
    if (i == index_) continue;
    Link& link = *neighbours_[i].from;
    for (std::size_t n = 0; n <= Link::events_max / events_per_visit && hear(link); ++n) continue;
    for (std::size_t n = 0; n <= Link::parcels_max / burst_max && receive(link); ++n) continue;
  }
}

void Shard::note_sent(std::span<std::uint64_t> sent) const noexcept {
  for (unsigned i = 0; i < neighbours_.size(); ++i) {
    if (i != index_) sent[i] = neighbours_[i].to->sent();
  }
}

bool Shard::delivered(std::span<const std::uint64_t> sent) noexcept {
  bool all = true;
  for (unsigned i = 0; i < neighbours_.size(); ++i) {
    if (i == index_) continue;
    neighbours_[i].to->reclaim(*pool_);
    all = all && neighbours_[i].to->came_back() >= sent[i];
  }
  return all;
}

bool Shard::arm() noexcept {
  for (unsigned i = 0; i < neighbours_.size(); ++i) {
    if (i != index_ && neighbours_[i].from->pending()) return true;
  }
  return false;
}

bool Shard::hear(Link& link) noexcept {
  LearnEvent event;
  unsigned heard = 0;
  for (; heard < events_per_visit && link.hear(event); ++heard) {
    // A port that is not known (any more) must not leave addresses behind.
    const ShardPort* port = table_->find(event.port);
    if (port != nullptr) addresses_.learn_remote(event.key, event.port, port->quota, now());
  }
  return heard != 0;
}

bool Shard::receive(Link& link) noexcept {
  std::array<Parcel*, burst_max> parcels;
  unsigned count = 0;
  while (count < burst_max) {
    parcels[count] = link.take();
    if (parcels[count] == nullptr) break;
    accept(*parcels[count], count);
    ++count;
  }
  if (count == 0) return false;
  deliver([&parcels](unsigned at) -> Packet& { return parcels[at]->packet; });
  for (unsigned i = 0; i < count; ++i) link.give_back(parcels[i]);
  return true;
}

// Marks a parcel's packet at its receivers here; who left since it was sent gets a drop.
void Shard::accept(Parcel& parcel, unsigned at) noexcept {
  Packet& packet = parcel.packet;
  if (parcel.port == no_port) {
    const ShardPort* from = table_->find(packet.source);
    if (from != nullptr) flood_here(*from, packet, at, parcel.slot);
    return;
  }
  ShardPort* to = table_->find(parcel.port);
  if (to == nullptr) to = table_->find_monitor(parcel.port ^ copy_mark);
  if (to == nullptr) return;
  for (Endpoint& endpoint : table_->endpoints_of(*to)) {
    if (endpoint.slot == parcel.slot && endpoint.port != nullptr) {
      return mark(endpoint, packet, at);
    }
  }
  to->counters->drop_no_queue.add();
}

// Forgets aged addresses, a few buckets at a time, so that quotas free up.
void Shard::sweep() noexcept {
  const std::uint32_t at = now();
  const std::uint32_t passed = at - swept_at_;
  if (passed == 0) return;
  swept_at_ = at;
  const std::size_t buckets = addresses_.bucket_count();
  const std::size_t due =
      1 + std::uint64_t{std::min(passed, sweep_ticks_)} * buckets / sweep_ticks_;
  const std::size_t count = std::min<std::size_t>(due, sweep_max);
  addresses_.expire(sweep_next_, count, at);
  sweep_next_ = (sweep_next_ + count) % buckets;
}

}  // namespace millrace::vswitch

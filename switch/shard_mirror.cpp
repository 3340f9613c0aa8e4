// Shard: copies for mirrors. What a packet is copied to is settled where it enters, for all its
// receivers on whatever reactor, so that nobody copies it again.
#include <bit>

#include "switch/header.hpp"
#include "switch/shard.hpp"

namespace millrace::vswitch {

void Shard::refuse(PortId ingress, std::span<const Packet> packets) noexcept {
  const ShardPort* monitor = table_->find_monitor(ingress);
  if (monitor == nullptr) return;  // the port was removed: nobody counts for it any more
  for (const Packet& packet : packets) monitor->counters->tx_bytes.add(packet.length);
  monitor->counters->tx_packets.add(packets.size());
  monitor->counters->drop_isolated.add(packets.size());
}

void Shard::mirror(std::span<Packet> packets) noexcept {
  for (unsigned at = 0; at < packets.size(); ++at) {
    for (MirrorSet left = wanted_[at]; left != 0; left &= left - 1) {
      copy_to(table_->mirrors[static_cast<unsigned>(std::countr_zero(left))], packets[at], at);
    }
  }
}

void Shard::copy_to(const ShardMirror& mirror, Packet& packet, unsigned at) noexcept {
  mirror.counters->frames.add();
  mirror.counters->bytes.add(packet.length);
  const ShardPort& to = table_->ports[mirror.to];
  Endpoint* endpoint = choose(to, packet);
  if (endpoint == nullptr) return to.counters->drop_no_queue.add();
  if (endpoint->reactor == index_) return mark(*endpoint, packet, at);
  if (!send_copy(*endpoint, packet, mirror.id)) to.counters->drop_link_full.add();
}

// What others send over the link must not suffer from it.
bool Shard::send_copy(const Endpoint& endpoint, const Packet& packet, PortId to) noexcept {
  Link& link = *neighbours_[endpoint.reactor].to;
  link.reclaim(*pool_);
  if (!link.spare(*pool_)) return false;
  return send(endpoint.reactor, packet, static_cast<PortId>(to | copy_mark), endpoint.slot);
}

MirrorSet Shard::mirrors_of_flood(const ShardPort& from, const Packet& packet) noexcept {
  if (table_->mirrors_out == 0) return 0;
  const VlanMembers& vlan = *table_->find_vlan(packet.vlan);
  const ShardPort* sender = sender_of(from, packet);
  MirrorSet wanted = 0;
  for (std::uint32_t i = 0; i < vlan.count; ++i) {
    const ShardPort& to = table_->ports[table_->members[vlan.first + i]];
    if (to.choice != Choice::none && !parted(from, sender, to)) wanted |= to.mirrors_out;
  }
  return wanted;
}

MirrorSet Shard::mirrors_of_pair(PortId ingress) const noexcept {
  if (table_->mirrors.empty()) return 0;
  const ShardPort* from = table_->find(ingress);
  if (from == nullptr) return 0;
  const ShardPort* to = table_->find(from->partner);
  return from->mirrors_in | (to == nullptr ? 0 : to->mirrors_out);
}

bool Shard::mirrors_direct(PortId ingress) const noexcept {
  return mirrors_of_pair(ingress) != 0;
}

void Shard::mirror_direct(PortId ingress, std::span<Packet> packets) noexcept {
  const ShardPort* from = table_->find(ingress);
  if (from == nullptr) return;
  const ShardPort* to = table_->find(from->partner);
  for (unsigned at = 0; at < packets.size(); ++at) {
    Packet& packet = packets[at];
    packet.source = ingress;
    wanted_[at] = 0;
    if (packet.header_size < ethernet::header_size) continue;
    if (from->trunk == nullptr) {
      packet.vlan = 0, packet.priority = 0;  // neither port has VLANs: a tag is payload
    } else if (take_tag<true>(*from, packet) != TagOf::ours) {
      continue;
    }
    const bool gets = to != nullptr && to->is_in(packet.vlan);
    wanted_[at] = from->mirrors_in | (gets ? to->mirrors_out : 0);
  }
  mirror(packets);
  deliver_burst(packets);
  if (wake_ != 0) wake();
}

}  // namespace millrace::vswitch

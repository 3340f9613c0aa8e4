#include "switch/ethdev_bond.hpp"

#include <rte_eth_bond.h>
#include <rte_eth_bond_8023ad.h>
#include <rte_ethdev.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>

#include "base/check.hpp"

namespace millrace::vswitch {

namespace {

// LACP's pool for a member: a frame for each descriptor of its transmit queues, and rings.
constexpr std::size_t lacp_bytes_a_queue = 1u << 20, lacp_bytes = 1u << 20;
constexpr std::uint8_t agreed = STATE_COLLECTING | STATE_DISTRIBUTING;

using Lacp = struct rte_eth_bond_8023ad_slave_info;  // a function has the same name
using Members = std::array<std::uint16_t, RTE_MAX_ETHPORTS>;

// Those that are started and have a link.
std::span<const std::uint16_t> active_of(std::uint16_t bond, Members& room) noexcept {
  const int count = rte_eth_bond_active_slaves_get(bond, room.data(), RTE_MAX_ETHPORTS);
  return {room.data(), static_cast<std::size_t>(std::max(count, 0))};
}

std::optional<Lacp> lacp_of(std::uint16_t bond, std::uint16_t member) {
  Lacp info{};
  if (rte_eth_bond_8023ad_slave_info(bond, member, &info) != 0) return std::nullopt;
  return info;
}

// The driver's receive queues begin each burst at the next of the members, and would ask one that
// is gone once more if that was it. A burst of nothing asks nobody, and puts that right.
void forget_place(std::uint16_t bond) {
  rte_eth_dev_info info{};
  CHECK(rte_eth_dev_info_get(bond, &info) == 0);
  for (std::uint16_t queue = 0; queue < info.nb_rx_queues; ++queue) {
    rte_mbuf* none = nullptr;
    rte_eth_rx_burst(bond, queue, &none, 0);
  }
}

bool carries(std::uint16_t bond, BondMode mode, std::uint16_t member) {
  if (mode == BondMode::active_backup) return rte_eth_bond_primary_get(bond) == member;
  if (mode != BondMode::lacp) return true;
  const auto lacp = lacp_of(bond, member);
  return lacp && (lacp->actor_state & agreed) == agreed;
}

}  // namespace

int bond_make(const std::string& name, BondMode mode) {
  const std::uint8_t number = mode == BondMode::active_backup ? BONDING_MODE_ACTIVE_BACKUP
                              : mode == BondMode::balance_xor ? BONDING_MODE_BALANCE
                                                              : BONDING_MODE_8023AD;
  const int made = rte_eth_bond_create(name.c_str(), number, 0);
  if (made < 0) return made;
  return rte_eth_bond_xmit_policy_set(static_cast<std::uint16_t>(made),
                                      BALANCE_XMIT_POLICY_LAYER34) == 0
             ? 0
             : -EINVAL;
}

bool bond_add(std::uint16_t bond, std::uint16_t member) {
  return rte_eth_bond_slave_add(bond, member) == 0;
}

void bond_remove(std::uint16_t bond, BondMode mode, std::uint16_t member) {
  rte_eth_dev_stop(member);
  CHECK(rte_eth_bond_slave_remove(bond, member) == 0);
  if (mode == BondMode::balance_xor) forget_place(bond);
  const auto left = bond_members(bond);
  if (mode != BondMode::active_backup || left.empty()) return;
  // The driver goes back to its first member where none has a link, also where that is gone.
  const auto used = rte_eth_bond_primary_get(bond);
  const bool there = std::ranges::find(left, used) != left.end();
  CHECK(rte_eth_bond_primary_set(bond, there ? static_cast<std::uint16_t>(used) : left.front()) ==
        0);
}

bool bond_has_memory(unsigned members, unsigned queues) {
  std::vector<std::unique_ptr<void, decltype(&rte_free)>> taken;
  for (unsigned i = 0; i < members; ++i) {
    taken.emplace_back(rte_malloc(nullptr, lacp_bytes + queues * lacp_bytes_a_queue, 0), rte_free);
  }
  return std::ranges::none_of(taken, [](const auto& each) { return each == nullptr; });
}

std::vector<std::uint16_t> bond_members(std::uint16_t bond) {
  Members room;
  const int count = rte_eth_bond_slaves_get(bond, room.data(), RTE_MAX_ETHPORTS);
  return {room.data(), room.data() + std::max(count, 0)};
}

LinkState bond_link(std::uint16_t bond, BondMode mode) {
  Members room;
  LinkState out;
  for (const auto member : active_of(bond, room)) {
    if (!carries(bond, mode, member)) continue;
    rte_eth_link link{};
    // As the driver's interrupt, or the bond's own look every 10 ms, left it.
    if (rte_eth_link_get_nowait(member, &link) != 0) continue;
    out.up = true;
    out.speed_mbps += link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
    if (mode == BondMode::active_backup) out.way = member + 1u;
  }
  return out;
}

MemberState bond_member_state(std::uint16_t bond, BondMode mode, std::uint16_t member) {
  Members room;
  MemberState out;
  const auto active = active_of(bond, room);
  if (std::ranges::find(active, member) == active.end()) return out;
  out.active = carries(bond, mode, member);
  if (mode != BondMode::lacp) return out;
  if (const auto lacp = lacp_of(bond, member); lacp && (lacp->actor_state & STATE_DEFAULTED) == 0) {
    std::memcpy(out.partner.emplace().data(), lacp->partner.system.addr_bytes, out.partner->size());
  }
  return out;
}

void bond_tend(std::uint16_t bond, BondMode mode, std::uint16_t queue) noexcept {
  if (mode == BondMode::lacp) rte_eth_tx_burst(bond, queue, nullptr, 0);
  if (mode != BondMode::active_backup) return;
  Members room;
  const auto primary = rte_eth_bond_primary_get(bond);
  for (const auto member : active_of(bond, room)) {
    if (member == primary) continue;
    std::array<rte_mbuf*, 64> past;
    constexpr unsigned bursts = 1024 / past.size();  // a ring
    for (unsigned i = 0; i < bursts; ++i) {
      const unsigned count = rte_eth_rx_burst(member, queue, past.data(), past.size());
      if (count == 0) break;
      rte_pktmbuf_free_bulk(past.data(), count);
    }
  }
}

}  // namespace millrace::vswitch

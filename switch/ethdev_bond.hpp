// DPDK's bonding driver: one device made of several, its members, each a device of its own that the
// driver configures, starts and polls. Here is what an ethdev of it needs beside the usual.
//
// A bond sends to its members from within its own bursts, also what keeps it together: in 802.3ad
// the driver's LACP runs on DPDK's interrupt thread, and its frames go out and come in by the
// bond's bursts, which it wants at least every 100 ms (tend()).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "switch/ethdev_port.hpp"

namespace millrace::vswitch {

// Threads: control.
// Makes an ethdev of that name; 0, or an error as DPDK has them.
[[nodiscard]] int bond_make(const std::string& name, BondMode mode);
[[nodiscard]] bool bond_add(std::uint16_t bond, std::uint16_t member);
// No reactor polls the bond. The member is stopped.
void bond_remove(std::uint16_t bond, BondMode mode, std::uint16_t member);
// Whether its LACP, which takes memory where it cannot be refused, has that.
[[nodiscard]] bool bond_has_memory(unsigned members, unsigned queues);

// Threads: any; they read what the driver knows and ask no device.
[[nodiscard]] std::vector<std::uint16_t> bond_members(std::uint16_t bond);
// A bond with LACP has a link when some member's partner agreed, any other when a member has.
[[nodiscard]] LinkState bond_link(std::uint16_t bond, BondMode mode);
[[nodiscard]] MemberState bond_member_state(std::uint16_t bond, BondMode mode,
                                            std::uint16_t member);

// Thread: the queue's reactor, between its bursts.
inline constexpr std::uint64_t bond_tend_ns = 10'000'000;
// Sends what LACP has to send; drops what came to members that stand by, so that the one that
// takes over does not begin with what is long past.
void bond_tend(std::uint16_t bond, BondMode mode, std::uint16_t queue) noexcept;

}  // namespace millrace::vswitch

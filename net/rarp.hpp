// RARP: the frame that tells a switch where a guest has moved (what QEMU sends on behalf of a guest
// without GUEST_ANNOUNCE). Any thread; never allocates.
#pragma once

#include <cstdint>
#include <span>

#include "switch/packet.hpp"

namespace millrace::net {

// Fills `packet` with a broadcast RARP request (RFC 903, operation 3) from and about `mac`, 60
// bytes, tagged with `vlan` unless that is 0. The packet owns all its bytes.
void make_rarp(std::span<const std::uint8_t, 6> mac, std::uint16_t vlan, vswitch::PortId source,
               vswitch::Packet& packet) noexcept;

}  // namespace millrace::net

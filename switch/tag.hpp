// Inserts and strips the outer 802.1Q tag in a packet's own copy of the header.
// The offload request's offsets move with the headers.
#pragma once

#include <array>
#include <cstddef>

#include "switch/header.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

// Needs header_size >= 18 and an outer tag.
void strip_tag(Packet& packet) noexcept;

// Bytes that a full header pushes out; they become the packet's first view and must live as long.
using Spill = std::array<std::byte, ethernet::tag_size>;

// Inserts the tag of packet.vlan and packet.priority. False (and unchanged) where header and views
// are both full.
[[nodiscard]] bool insert_tag(Packet& packet, Spill& spill) noexcept;

}  // namespace millrace::vswitch

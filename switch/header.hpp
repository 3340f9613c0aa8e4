// Numbers of Ethernet, 802.1Q and IP headers, and loads and stores in a packet's fetched header.
// The caller has checked that the offset lies inside header_size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/endian.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

namespace ethernet {
inline constexpr std::size_t header_size = 14, tag_size = 4, addresses_size = 12;
inline constexpr std::uint16_t ipv4 = 0x0800, ipv6 = 0x86dd;
inline constexpr std::uint16_t customer_tag = 0x8100;    // 802.1Q
inline constexpr std::uint16_t service_tag = 0x88a8;     // 802.1ad
inline constexpr std::uint16_t slow_protocols = 0x8809;  // LACP
[[nodiscard]] constexpr bool is_tag(std::uint16_t type) {
  return type == customer_tag || type == service_tag;
}
}  // namespace ethernet

namespace ip {
inline constexpr std::uint8_t hop_by_hop = 0, tcp = 6, udp = 17, routing = 43, fragment = 44,
                              authentication = 51, destination_options = 60;
}  // namespace ip

[[nodiscard]] inline std::uint8_t load8(const Packet& packet, std::size_t at) noexcept {
  return std::to_integer<std::uint8_t>(packet.header[at]);
}

[[nodiscard]] inline std::uint16_t load16(const Packet& packet, std::size_t at) noexcept {
  base::be16 value;
  std::memcpy(&value, packet.header.data() + at, 2);
  return value.host();
}

// Stores the low 16 bits of `value`.
inline void store16(Packet& packet, std::size_t at, std::uint32_t value) noexcept {
  const base::be16 ordered{static_cast<std::uint16_t>(value)};
  std::memcpy(packet.header.data() + at, &ordered, 2);
}

}  // namespace millrace::vswitch

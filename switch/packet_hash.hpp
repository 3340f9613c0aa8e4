// PacketHash: the hash that a driver asked for, of a packet's fetched header (virtio 1.2
// §5.1.6.4.3): which of its protocols counts, and over which fields.
//
// A fragment counts as bare IP, whatever it begins with, so that all parts of a datagram agree.
// What does not lie in the fetched header does not exist. Thread: any; constant once made.
#pragma once

#include <cstdint>

#include "switch/packet.hpp"
#include "switch/toeplitz.hpp"

namespace millrace::vswitch {

// What may be hashed; bits. The _ex kinds take a mobile node's home address instead of the one in
// the header (RFC 6275 §6.3 and §6.4), and only of packets with extension headers.
namespace hash_kind {
inline constexpr std::uint32_t ipv4 = 1u << 0, tcp4 = 1u << 1, udp4 = 1u << 2, ipv6 = 1u << 3,
                               tcp6 = 1u << 4, udp6 = 1u << 5, ipv6_ex = 1u << 6, tcp6_ex = 1u << 7,
                               udp6_ex = 1u << 8;
inline constexpr std::uint32_t all = (1u << 9) - 1;
}  // namespace hash_kind

class PacketHash {
 public:
  struct Result {
    std::uint32_t value = 0;
    std::uint32_t kind = 0;  // the one bit of hash_kind that applied; 0: no hash
  };

  // `kinds`: bits of hash_kind.
  PacketHash(std::uint32_t kinds, const Toeplitz::Key& key) noexcept : kinds_{kinds}, hash_{key} {}
  [[nodiscard]] Result of(const Packet& packet) const noexcept;

 private:
  const std::uint32_t kinds_;
  const Toeplitz hash_;
};

}  // namespace millrace::vswitch

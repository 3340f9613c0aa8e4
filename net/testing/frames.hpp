// Frames for tests: whole Ethernet frames with a patterned payload, and an oracle that computes
// checksums byte by byte, apart from the code under test.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "switch/packet.hpp"

namespace millrace::net::testing {

using Bytes = std::vector<std::uint8_t>;

struct FrameSpec {
  bool ipv6 = false, udp = false;
  bool ecn = false;
  vswitch::Gso gso = vswitch::Gso::none;
  bool partial = false;       // the checksum is left to be completed; implied by gso
  std::size_t payload = 100;  // L4 payload bytes
  std::uint16_t gso_size = 1000;
  std::uint8_t seed = 1;
};

inline std::size_t l3_size(const FrameSpec& s) {
  return s.ipv6 ? 40 : 20;
}
inline std::size_t l4_size(const FrameSpec& s) {
  return s.udp ? 8 : 20;
}
inline std::size_t headers_size(const FrameSpec& s) {
  return 14 + l3_size(s) + l4_size(s);
}

inline std::uint8_t pattern(std::size_t at, std::uint8_t seed) {
  return static_cast<std::uint8_t>(at * 7 + at / 251 + seed);
}

inline void put16(Bytes& b, std::size_t at, std::size_t value) {
  b.at(at) = static_cast<std::uint8_t>(value >> 8);
  b.at(at + 1) = static_cast<std::uint8_t>(value);
}
inline std::uint16_t get16(const Bytes& b, std::size_t at) {
  return static_cast<std::uint16_t>(b.at(at) << 8 | b.at(at + 1));
}

// RFC 1071, one 16-bit word at a time; not inverted.
inline std::uint32_t ones_sum(const Bytes& b, std::size_t from, std::size_t to,
                              std::uint32_t sum = 0) {
  for (std::size_t i = from; i < to; i += 2) {
    sum += static_cast<std::uint32_t>(b.at(i) << 8) + (i + 1 < to ? b.at(i + 1) : 0u);
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return sum;
}
inline std::uint32_t pseudo_sum(const Bytes& b, bool ipv6, bool udp, std::size_t l4_length) {
  const std::size_t from = ipv6 ? 14 + 8 : 14 + 12, size = ipv6 ? 32 : 8;
  const auto extra = static_cast<std::uint32_t>(l4_length + (udp ? 17 : 6));
  std::uint32_t sum = ones_sum(b, from, from + size) + extra;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return sum;
}

// A frame without VLAN tags; the checksum is complete, or partial where the spec says so.
inline Bytes make_frame(const FrameSpec& s) {
  Bytes b(headers_size(s) + s.payload, 0);
  for (std::size_t i = 0; i < 6; ++i) {
    b[i] = static_cast<std::uint8_t>(0x50 + i);
    b[6 + i] = static_cast<std::uint8_t>(0x60 + i);
  }
  b[0] = 0x52, b[6] = 0x52;
  put16(b, 12, s.ipv6 ? 0x86dd : 0x0800);
  const std::size_t l3 = 14, l4 = l3 + l3_size(s), l4_length = l4_size(s) + s.payload;
  if (s.ipv6) {
    b[l3] = 0x60;
    put16(b, l3 + 4, l4_length);
    b[l3 + 6] = s.udp ? 17 : 6, b[l3 + 7] = 64;
    for (std::size_t i = 8; i < 40; ++i) b[l3 + i] = static_cast<std::uint8_t>(i * 3);
  } else {
    b[l3] = 0x45;
    put16(b, l3 + 2, 20 + l4_length);
    put16(b, l3 + 4, 0x1234);
    b[l3 + 8] = 64, b[l3 + 9] = s.udp ? 17 : 6;
    for (std::size_t i = 12; i < 20; ++i) b[l3 + i] = static_cast<std::uint8_t>(i * 5);
    put16(b, l3 + 10, ~ones_sum(b, l3, l3 + 20) & 0xffff);
  }
  put16(b, l4, 1000), put16(b, l4 + 2, 2000);
  if (s.udp) {
    put16(b, l4 + 4, l4_length);
  } else {
    put16(b, l4 + 4, 0x0102), put16(b, l4 + 6, 0x0304);
    b[l4 + 12] = 0x50, b[l4 + 13] = s.ecn ? 0x98 : 0x18;
  }
  for (std::size_t i = 0; i < s.payload; ++i) b[headers_size(s) + i] = pattern(i, s.seed);
  const std::size_t field = l4 + (s.udp ? 6u : 16u);
  const std::uint32_t pseudo = pseudo_sum(b, s.ipv6, s.udp, l4_length);
  if (s.partial || s.gso != vswitch::Gso::none) {
    put16(b, field, pseudo);
  } else {
    const std::uint32_t sum = ~ones_sum(b, l4, b.size(), pseudo) & 0xffff;
    put16(b, field, s.udp && sum == 0 ? 0xffff : sum);
  }
  return b;
}

// True if IP and L4 lengths and checksums of an untagged frame are all right.
inline bool checks_out(const Bytes& b) {
  const bool ipv6 = get16(b, 12) == 0x86dd;
  const std::size_t l3 = 14, l4 = l3 + (ipv6 ? 40u : 20u);
  const bool udp = b.at(ipv6 ? l3 + 6 : l3 + 9) == 17;
  if (!ipv6 && ones_sum(b, l3, l3 + 20) != 0xffff) return false;
  const std::size_t said = ipv6 ? l4 + get16(b, l3 + 4) : l3 + get16(b, l3 + 2);
  if (said != b.size()) return false;
  if (udp && get16(b, l4 + 4) != b.size() - l4) return false;
  return ones_sum(b, l4, b.size(), pseudo_sum(b, ipv6, udp, b.size() - l4)) == 0xffff;
}

inline vswitch::Offload offload_of(const FrameSpec& s) {
  vswitch::Offload o;
  o.checksum_needed = s.partial || s.gso != vswitch::Gso::none;
  if (!o.checksum_needed) return o;
  o.checksum_start = static_cast<std::uint16_t>(14 + l3_size(s));
  o.checksum_offset = s.udp ? 6 : 16;
  o.gso = s.gso;
  o.gso_size = s.gso != vswitch::Gso::none ? s.gso_size : std::uint16_t{0};
  o.header_length = static_cast<std::uint16_t>(headers_size(s));
  o.ecn = s.ecn;
  return o;
}

// A packet whose payload is `bytes`, cut into views of `view` bytes.
struct OwnedPacket {
  OwnedPacket(Bytes frame, const FrameSpec& spec, std::size_t view = 4096)
      : bytes{std::move(frame)} {
    packet.length = static_cast<std::uint32_t>(bytes.size());
    packet.header_size =
        static_cast<std::uint16_t>(std::min(bytes.size(), vswitch::Packet::header_max));
    std::memcpy(packet.header.data(), bytes.data(), packet.header_size);
    for (std::size_t at = packet.header_size; at < bytes.size(); at += view) {
      const auto size = static_cast<std::uint32_t>(std::min(view, bytes.size() - at));
      const auto* data = reinterpret_cast<const std::byte*>(bytes.data() + at);
      packet.views.at(packet.view_count++) = {data, size};
    }
    packet.offload = offload_of(spec);
  }
  OwnedPacket(const OwnedPacket&) = delete;
  OwnedPacket& operator=(const OwnedPacket&) = delete;

  Bytes bytes;
  vswitch::Packet packet;
};

}  // namespace millrace::net::testing

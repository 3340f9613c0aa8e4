// Frames for tests: builds Ethernet, IPv4/IPv6, TCP/UDP frames as bytes, turns bytes into Packets
// and back, and checks checksums the slow and obvious way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "switch/fabric.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch::testing {

using Bytes = std::vector<std::uint8_t>;

inline void put16(Bytes& out, unsigned value) {
  out.push_back(static_cast<std::uint8_t>(value >> 8));
  out.push_back(static_cast<std::uint8_t>(value));
}
inline void put32(Bytes& out, std::uint32_t value) {
  put16(out, value >> 16);
  put16(out, value & 0xffff);
}
inline unsigned get16(const Bytes& in, std::size_t at) {
  return in[at] * 256u + in[at + 1];
}
inline std::uint32_t get32(const Bytes& in, std::size_t at) {
  return get16(in, at) << 16 | get16(in, at + 2);
}
inline void set16(Bytes& out, std::size_t at, unsigned value) {
  out[at] = static_cast<std::uint8_t>(value >> 8);
  out[at + 1] = static_cast<std::uint8_t>(value);
}

// RFC 1071, word by word: 0 where `bytes` hold a right checksum.
inline unsigned oracle_checksum(const Bytes& bytes, std::size_t first, std::size_t end,
                                std::uint32_t sum = 0) {
  for (std::size_t i = first; i < end; i += 2) {
    sum += bytes[i] * 256u + (i + 1 < end ? bytes[i + 1] : 0u);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}

struct Shape {
  bool ipv6 = false, udp = false;
  unsigned tags = 0;         // VLAN tags
  unsigned ip_options = 0;   // bytes of IPv4 options, or of one IPv6 destination options header
  unsigned tcp_options = 0;  // bytes
  unsigned payload = 0;
  std::uint8_t tcp_flags = 0x18;
  std::uint32_t sequence = 1000;
  unsigned ip_id = 7;

  [[nodiscard]] unsigned l2() const { return 14 + 4 * tags; }
  [[nodiscard]] unsigned l3() const { return (ipv6 ? 40 : 20) + ip_options; }
  [[nodiscard]] unsigned l4() const { return udp ? 8 : 20 + tcp_options; }
  [[nodiscard]] unsigned headers() const { return l2() + l3() + l4(); }
};

// The sum of a pseudo-header of the frame in `bytes`.
inline std::uint32_t pseudo_sum(const Bytes& bytes, const Shape& shape) {
  const std::size_t from = shape.l2() + (shape.ipv6 ? 8 : 12);
  std::uint32_t sum = 0;
  for (std::size_t i = from; i < from + (shape.ipv6 ? 32 : 8); i += 2) sum += get16(bytes, i);
  const auto length = static_cast<std::uint32_t>(bytes.size() - shape.l2() - shape.l3());
  return sum + (shape.udp ? 17 : 6) + (length & 0xffff) + (length >> 16);
}

// A frame with a right IPv4 header checksum and a partial L4 checksum.
inline Bytes make_frame(const Shape& shape) {
  Bytes out{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1};
  for (unsigned i = 0; i < shape.tags; ++i) put16(out, 0x8100), put16(out, 10 + i);
  const unsigned protocol = shape.udp ? 17 : 6, l4_length = shape.l4() + shape.payload;
  if (shape.ipv6) {
    put16(out, 0x86dd), put32(out, 0x60000000), put16(out, shape.ip_options + l4_length);
    out.push_back(shape.ip_options != 0 ? 60 : static_cast<std::uint8_t>(protocol));
    out.push_back(64);
    for (unsigned i = 0; i < 32; ++i) out.push_back(static_cast<std::uint8_t>(0x20 + i));
    for (unsigned i = 0; i < shape.ip_options; ++i) out.push_back(0);
    if (shape.ip_options != 0) {
      out[shape.l2() + 40] = static_cast<std::uint8_t>(protocol);
      out[shape.l2() + 41] = static_cast<std::uint8_t>(shape.ip_options / 8 - 1);
    }
  } else {
    put16(out, 0x0800);
    out.push_back(static_cast<std::uint8_t>(0x40 | (shape.l3() / 4)));
    out.push_back(0), put16(out, shape.l3() + l4_length), put16(out, shape.ip_id),
        put16(out, 0x4000);
    out.push_back(64), out.push_back(static_cast<std::uint8_t>(protocol)), put16(out, 0);
    put32(out, 0x0a000001), put32(out, 0x0a000002);
    for (unsigned i = 0; i < shape.ip_options; ++i) out.push_back(1);
    set16(out, shape.l2() + 10, oracle_checksum(out, shape.l2(), out.size()));
  }
  put16(out, 1234), put16(out, 80);
  if (shape.udp) {
    put16(out, l4_length), put16(out, 0);
  } else {
    put32(out, shape.sequence), put32(out, 99);
    out.push_back(static_cast<std::uint8_t>(shape.l4() / 4 << 4));
    out.push_back(shape.tcp_flags), put16(out, 512), put16(out, 0), put16(out, 0);
    for (unsigned i = 0; i < shape.tcp_options; ++i) out.push_back(1);
  }
  for (unsigned i = 0; i < shape.payload; ++i)
    out.push_back(static_cast<std::uint8_t>(i * 7 + i / 256));
  const std::size_t field = shape.l2() + shape.l3() + (shape.udp ? 6 : 16);
  set16(out, field, ~oracle_checksum(out, 0, 0, pseudo_sum(out, shape)));
  return out;
}

// A short frame without IP.
inline Bytes plain_frame(const Mac& to, const Mac& from, std::uint8_t mark = 0,
                         std::size_t size = 60) {
  Bytes out(size, mark);
  std::copy(to.begin(), to.end(), out.begin());
  std::copy(from.begin(), from.end(), out.begin() + 6);
  set16(out, 12, 0x88b5);
  return out;
}
inline Bytes tagged(const Bytes& frame, unsigned control, unsigned type = 0x8100) {
  Bytes out(frame.begin(), frame.begin() + 12);
  put16(out, type), put16(out, control);
  out.insert(out.end(), frame.begin() + 12, frame.end());
  return out;
}

// Describes `bytes` in views of at most `view_size`; `bytes` must outlive the packet.
inline void describe(const Bytes& bytes, Packet& packet, std::size_t view_size = 2048,
                     std::size_t header_max = Packet::header_max) {
  const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
  packet = {};
  packet.length = static_cast<std::uint32_t>(bytes.size());
  const std::size_t fetched = std::min(bytes.size(), header_max);
  packet.header_size = static_cast<std::uint16_t>(fetched);
  std::memcpy(packet.header.data(), data, fetched);
  for (std::size_t at = fetched; at < bytes.size(); at += view_size) {
    const auto size = std::min(view_size, bytes.size() - at);
    packet.views[packet.view_count++] = {data + at, static_cast<std::uint32_t>(size)};
  }
}

inline Bytes contents(const Packet& packet) {
  Bytes out;
  for (const auto b : packet.headers()) out.push_back(std::to_integer<std::uint8_t>(b));
  for (const View& view : packet.payload()) {
    for (std::size_t i = 0; i < view.size; ++i) {
      out.push_back(std::to_integer<std::uint8_t>(view.data[i]));
    }
  }
  return out;
}

inline void request(Packet& packet, const Shape& shape, Gso gso = Gso::none, unsigned size = 0) {
  packet.offload.checksum_needed = true;
  packet.offload.checksum_start = static_cast<std::uint16_t>(shape.l2() + shape.l3());
  packet.offload.checksum_offset = shape.udp ? 6 : 16;
  packet.offload.gso = gso;
  packet.offload.gso_size = static_cast<std::uint16_t>(size);
}

}  // namespace millrace::vswitch::testing

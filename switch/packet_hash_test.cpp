#include "switch/packet_hash.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

namespace millrace::vswitch {
namespace {

namespace kind = hash_kind;
using Bytes = std::vector<std::uint8_t>;

// The verification suite that the makers of receive side scaling published.
constexpr Toeplitz::Key known_key{0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67,
                                  0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
                                  0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
                                  0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa};
struct Known {
  const char *destination, *source;
  std::uint16_t destination_port, source_port;
  std::uint32_t of_addresses, with_ports;
};
constexpr Known known4[] = {
    {"161.142.100.80", "66.9.149.187", 1766, 2794, 0x323e8fc2, 0x51ccc178},
    {"65.69.140.83", "199.92.111.2", 4739, 14230, 0xd718262a, 0xc626b0ea},
    {"12.22.207.184", "24.19.198.95", 38024, 12898, 0xd2d0a5de, 0x5c2b394a},
    {"209.142.163.6", "38.27.205.30", 2217, 48228, 0x82989176, 0xafc7327f},
    {"202.188.127.2", "153.39.163.191", 1303, 44251, 0x5d1809c5, 0x10e828a2},
};
constexpr Known known6[] = {
    {"3ffe:2501:200:3::1", "3ffe:2501:200:1fff::7", 1766, 2794, 0x2cc18cd5, 0x40207d3d},
    {"ff02::1", "3ffe:501:8::260:97ff:fe40:efab", 4739, 14230, 0x0f0c461c, 0xdde51bbf},
    {"fe80::200:f8ff:fe21:67cf", "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 38024, 44251, 0x4b61e985,
     0x02d1feef},
};

void append(Bytes& out, const Bytes& more) {
  out.insert(out.end(), more.begin(), more.end());
}
Bytes address(const char* text) {
  const bool ipv6 = std::string{text}.find(':') != std::string::npos;
  Bytes out(ipv6 ? 16 : 4);
  EXPECT_EQ(inet_pton(ipv6 ? AF_INET6 : AF_INET, text, out.data()), 1);
  return out;
}
Bytes transport(const Known& flow, std::uint8_t protocol) {
  Bytes out(protocol == 6 ? 20 : 8);
  out[0] = static_cast<std::uint8_t>(flow.source_port >> 8);
  out[1] = static_cast<std::uint8_t>(flow.source_port);
  out[2] = static_cast<std::uint8_t>(flow.destination_port >> 8);
  out[3] = static_cast<std::uint8_t>(flow.destination_port);
  return out;
}
Bytes ethernet(unsigned tags, std::uint8_t type_high, std::uint8_t type_low) {
  Bytes out(12);
  for (unsigned i = 0; i < tags; ++i) append(out, {0x81, 0x00, 0x00, 0x07});
  append(out, {type_high, type_low});
  return out;
}
Bytes frame4(const Known& flow, std::uint8_t protocol, unsigned tags = 0, unsigned options = 0,
             std::uint16_t fragment = 0) {
  Bytes out = ethernet(tags, 0x08, 0x00);
  Bytes header(12);
  header[0] = static_cast<std::uint8_t>(0x45 + options);
  header[6] = static_cast<std::uint8_t>(fragment >> 8);
  header[7] = static_cast<std::uint8_t>(fragment);
  header[9] = protocol;
  append(out, header);
  append(out, address(flow.source));
  append(out, address(flow.destination));
  append(out, Bytes(4 * options, 1));
  append(out, transport(flow, protocol));
  return out;
}
// `extensions`: whole headers; the first byte of each is the kind of what follows it.
Bytes frame6(const Known& flow, std::uint8_t next, const std::vector<Bytes>& extensions = {},
             std::uint8_t protocol = 6) {
  Bytes out = ethernet(0, 0x86, 0xdd);
  append(out, {0x60, 0, 0, 0, 0, 0, next, 64});
  append(out, address(flow.source));
  append(out, address(flow.destination));
  for (const Bytes& extension : extensions) append(out, extension);
  append(out, transport(flow, protocol));
  return out;
}
PacketHash::Result hash(const Bytes& frame, std::uint32_t kinds,
                        std::size_t fetched = Packet::header_max) {
  Packet packet;
  packet.header.fill(std::byte{0xee});
  packet.header_size = static_cast<std::uint16_t>(std::min(frame.size(), fetched));
  packet.length = static_cast<std::uint32_t>(frame.size());
  std::ranges::copy(std::as_bytes(std::span{frame}).first(packet.header_size),
                    packet.header.begin());
  return PacketHash{kinds, known_key}.of(packet);
}

TEST(PacketHash, OfKnownFlows) {
  for (const Known& flow : known4) {
    for (const unsigned tags : {0u, 1u, 2u}) {
      for (const unsigned options : {0u, 3u, 10u}) {
        const auto bare = hash(frame4(flow, 6, tags, options), kind::ipv4);
        EXPECT_EQ(bare.value, flow.of_addresses) << flow.source;
        EXPECT_EQ(bare.kind, kind::ipv4);
        const auto tcp = hash(frame4(flow, 6, tags, options), kind::all);
        EXPECT_EQ(tcp.value, flow.with_ports) << flow.source;
        EXPECT_EQ(tcp.kind, kind::tcp4);
        const auto udp = hash(frame4(flow, 17, tags, options), kind::all);
        EXPECT_EQ(udp.value, flow.with_ports);
        EXPECT_EQ(udp.kind, kind::udp4);
      }
    }
  }
  for (const Known& flow : known6) {
    EXPECT_EQ(hash(frame6(flow, 6), kind::ipv6).value, flow.of_addresses) << flow.source;
    EXPECT_EQ(hash(frame6(flow, 6), kind::all).value, flow.with_ports) << flow.source;
    EXPECT_EQ(hash(frame6(flow, 6), kind::all).kind, kind::tcp6);
    EXPECT_EQ(hash(frame6(flow, 17, {}, 17), kind::all).kind, kind::udp6);
    EXPECT_EQ(hash(frame6(flow, 17, {}, 17), kind::all).value, flow.with_ports);
  }
}

TEST(PacketHash, OnlyWhatIsWanted) {
  const Known& flow = known4[0];
  EXPECT_EQ(hash(frame4(flow, 6), 0).kind, 0u);
  EXPECT_EQ(hash(frame4(flow, 6), kind::udp4).kind, 0u);
  EXPECT_EQ(hash(frame4(flow, 6), kind::udp4 | kind::ipv4).value, flow.of_addresses);
  EXPECT_EQ(hash(frame4(flow, 1), kind::all).kind, kind::ipv4) << "neither TCP nor UDP";
  EXPECT_EQ(hash(frame4(flow, 6), kind::tcp6 | kind::ipv6).kind, 0u);
  EXPECT_EQ(hash(frame6(known6[0], 6), kind::tcp4 | kind::ipv4).kind, 0u);
  EXPECT_EQ(hash(frame6(known6[0], 6), kind::ipv6_ex | kind::tcp6_ex).kind, 0u)
      << "no extension header";
  EXPECT_EQ(hash(ethernet(0, 0x08, 0x06), kind::all).kind, 0u) << "ARP";
}

TEST(PacketHash, AllPartsOfADatagramAgree) {
  const Known& flow = known4[1];
  for (const std::uint16_t place : std::initializer_list<std::uint16_t>{0x2000, 0x2010, 0x10}) {
    const auto part = hash(frame4(flow, 17, 0, 0, place), kind::all);
    EXPECT_EQ(part.value, flow.of_addresses);
    EXPECT_EQ(part.kind, kind::ipv4);
  }
  EXPECT_EQ(hash(frame4(flow, 17, 0, 0, 0x4000), kind::all).kind, kind::udp4) << "don't fragment";
  const Bytes fragment{17, 0, 0, 1, 0, 0, 0, 9};
  const auto part = hash(frame6(known6[0], 44, {fragment}, 17), kind::all & ~kind::ipv6_ex);
  EXPECT_EQ(part.kind, kind::ipv6);
  EXPECT_EQ(part.value, known6[0].of_addresses);
}

// The home addresses of a mobile node and its peer stand in for those of the header.
TEST(PacketHash, ExtensionHeaders) {
  const Known& flow = known6[0];
  const Known roaming{"fe80::1", "fe80::2", flow.destination_port, flow.source_port, 0, 0};
  Bytes options{43, 2, 1, 2, 0, 0, 0xc9, 16};  // PadN, then the home address
  append(options, address(flow.source));
  Bytes routing{6, 2, 2, 1, 0, 0, 0, 0};
  append(routing, address(flow.destination));
  const Bytes frame = frame6(roaming, 60, {options, routing});
  EXPECT_EQ(hash(frame, kind::all).kind, kind::tcp6_ex);
  EXPECT_EQ(hash(frame, kind::all).value, flow.with_ports);
  EXPECT_EQ(hash(frame, kind::ipv6_ex | kind::ipv6).kind, kind::ipv6_ex);
  EXPECT_EQ(hash(frame, kind::ipv6_ex | kind::ipv6).value, flow.of_addresses);
  // Who wants no home address gets the hash of a packet without these headers.
  const auto plain = hash(frame, kind::tcp6 | kind::ipv6);
  EXPECT_EQ(plain.kind, kind::tcp6);
  EXPECT_EQ(plain.value, hash(frame6(roaming, 6), kind::all).value);
  // Headers that say nothing of addresses are passed over.
  const Bytes hop{51, 0, 1, 4, 0, 0, 0, 0}, authentication{6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const auto passed = hash(frame6(flow, 0, {hop, authentication}), kind::all);
  EXPECT_EQ(passed.kind, kind::tcp6_ex);
  EXPECT_EQ(passed.value, flow.with_ports);
}

TEST(PacketHash, WhatWasNotFetchedDoesNotExist) {
  const Known& flow = known4[2];
  const Bytes frame = frame4(flow, 6);
  for (std::size_t size = 0; size <= frame.size(); ++size) {
    const auto result = hash(frame, kind::all, size);
    EXPECT_EQ(result.kind, size < 34 ? 0u : size < 54 ? kind::ipv4 : kind::tcp4) << size;
  }
  const Bytes frame6_whole =
      frame6(known6[1], 0,
             {{60, 1, 1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0}, {6, 0, 0xc9, 200, 0, 0, 0, 0}});
  for (std::size_t size = 0; size <= frame6_whole.size(); ++size) {
    const auto result = hash(frame6_whole, kind::all, size);
    EXPECT_EQ(result.kind, size < 54 ? 0u : size < 98 ? kind::ipv6_ex : kind::tcp6_ex) << size;
    if (size >= 98) {
      EXPECT_EQ(result.value, known6[1].with_ports);
    }
  }
}

// Whatever the bytes are, what is read lies in the fetched header (the sanitizers watch).
TEST(PacketHash, NonsenseIsBounded) {
  std::uint64_t state = 1;
  const auto random = [&state] {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::uint8_t>(state >> 56);
  };
  unsigned hashed = 0;
  for (unsigned round = 0; round < 20'000; ++round) {
    Bytes frame(random() % 129);
    for (auto& byte : frame) byte = random();
    if (frame.size() > 20) {
      const bool ipv6 = (round & 1) != 0;
      frame[12] = ipv6 ? 0x86 : 0x08, frame[13] = ipv6 ? 0xdd : 0x00;
      frame[14] = static_cast<std::uint8_t>((ipv6 ? 0x60 : 0x40) | (frame[14] & 0xf));
      constexpr std::uint8_t nexts[] = {0, 43, 60, 51};
      frame[20] = nexts[round / 2 % 4];
    }
    if (hash(frame, kind::all).kind != 0) ++hashed;
  }
  EXPECT_GT(hashed, 10'000u);
}

TEST(Toeplitz, IsLinear) {
  const Toeplitz toeplitz{known_key};
  std::array<std::byte, Toeplitz::input_max> zero{}, one{}, both{};
  EXPECT_EQ(toeplitz(zero), 0u);
  one[0] = std::byte{0x80};
  EXPECT_EQ(toeplitz(one), 0x6d5a56dau) << "the first bit: the key's first 32";
  both = one;
  both[35] = std::byte{0x01};
  one = zero;
  one[35] = std::byte{0x01};
  EXPECT_EQ(toeplitz(one), 0xdf5600fdu) << "the last bit: those from its 287th on";
  EXPECT_EQ(toeplitz(both), 0x6d5a56dau ^ 0xdf5600fdu);
}

}  // namespace
}  // namespace millrace::vswitch

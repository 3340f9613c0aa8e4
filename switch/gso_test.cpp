#include "switch/gso.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "base/endian.hpp"
#include "switch/testing/frames.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

class Random {
 public:
  explicit Random(unsigned seed) : engine_{seed} {}
  unsigned operator()() { return static_cast<unsigned>(engine_()); }

 private:
  std::mt19937 engine_;
};

Bytes completed(const Packet& packet) {
  Bytes out = contents(packet);
  if (packet.offload.checksum_needed) {
    set16(out, packet.offload.checksum_start + packet.offload.checksum_offset,
          complete_checksum(packet));
  }
  return out;
}

// 0 where the frame's L4 checksum is right.
unsigned l4_error(const Bytes& frame, const Shape& shape) {
  return oracle_checksum(frame, shape.l2() + shape.l3(), frame.size(), pseudo_sum(frame, shape));
}

Gso kind(const Shape& shape) {
  if (shape.udp) return Gso::udp_l4;
  return shape.ipv6 ? Gso::tcp6 : Gso::tcp4;
}

TEST(Checksum, EqualsTheWordByWordSum) {
  Random random{1};
  for (int round = 0; round < 500; ++round) {
    Bytes bytes(random() % 3000);
    for (auto& b : bytes) b = static_cast<std::uint8_t>(random());
    const std::span raw{reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
    const std::uint32_t start = random() % 100'000;
    EXPECT_EQ(checksum_fold(checksum_add(raw, start)),
              oracle_checksum(bytes, 0, bytes.size(), start));
  }
}

TEST(Checksum, CompletesOverPiecesOfAnySize) {
  Random random{2};
  auto packet = std::make_unique<Packet>();
  for (int round = 0; round < 400; ++round) {
    Shape shape{.ipv6 = (round & 1) != 0, .udp = (round & 2) != 0};
    shape.tags = random() % 3;
    shape.payload = random() % 1500;
    const Bytes frame = make_frame(shape);
    describe(frame, *packet, 25 + random() % 700, shape.headers() + random() % 20);
    request(*packet, shape);
    ASSERT_TRUE(validate_offload(*packet));
    EXPECT_EQ(packet->offload.header_length, shape.headers());
    EXPECT_EQ(l4_error(completed(*packet), shape), 0u);
  }
}

TEST(Checksum, IsNeverZero) {
  const Shape shape{.udp = true, .payload = 2};
  auto packet = std::make_unique<Packet>();
  bool seen = false;
  for (unsigned value = 0; value < 0x10000; ++value) {
    Bytes frame = make_frame(shape);
    set16(frame, frame.size() - 2, value);
    describe(frame, *packet);
    request(*packet, shape);
    const auto checksum = complete_checksum(*packet);
    ASSERT_NE(checksum, 0);
    seen |= checksum == 0xffff;
  }
  EXPECT_TRUE(seen);
}

TEST(Segmenter, AgreesWithAScalarOracle) {
  Random random{3};
  auto whole = std::make_unique<Packet>(), segment = std::make_unique<Packet>();
  for (int round = 0; round < 600; ++round) {
    Shape shape{.ipv6 = (random() & 1) != 0, .udp = random() % 3 == 0};
    shape.tags = random() % 3;
    shape.ip_options = shape.ipv6 ? random() % 2 * 8 : random() % 3 * 4;
    shape.tcp_options = random() % 4 * 4;
    shape.payload = 1 + random() % (round % 10 == 0 ? 64'000 : 5000);
    shape.tcp_flags = 0x99;  // CWR, PSH, ACK, FIN
    shape.sequence = 0xffff'f000;
    shape.ip_id = 0xfffe;
    const unsigned size = 40 + random() % 1460;
    const Bytes frame = make_frame(shape);
    describe(frame, *whole, 900 + random() % 3000);
    request(*whole, shape, kind(shape), size);
    ASSERT_TRUE(validate_offload(*whole));
    if (shape.payload <= size) {
      EXPECT_EQ(whole->offload.gso, Gso::none);
      continue;
    }
    Segmenter segmenter{*whole};
    std::size_t at = 0;
    for (unsigned index = 0; at < shape.payload; ++index) {
      Shape piece = shape;
      piece.payload = std::min<unsigned>(size, shape.payload - static_cast<unsigned>(at));
      piece.sequence = shape.sequence + static_cast<std::uint32_t>(at);
      piece.ip_id = shape.ip_id + index;
      if (index > 0) piece.tcp_flags &= 0x7f;
      if (at + piece.payload < shape.payload) piece.tcp_flags &= 0xf6;
      Bytes expected = make_frame(piece);
      std::copy_n(frame.begin() + shape.headers() + static_cast<std::ptrdiff_t>(at), piece.payload,
                  expected.begin() + shape.headers());
      ASSERT_TRUE(segmenter.next(*segment));
      EXPECT_EQ(segment->length, expected.size());
      EXPECT_EQ(segment->offload.gso, Gso::none);
      ASSERT_EQ(contents(*segment), expected);
      const Bytes sent = completed(*segment);
      ASSERT_EQ(l4_error(sent, piece), 0u);
      if (!shape.ipv6) {
        ASSERT_EQ(oracle_checksum(sent, piece.l2(), piece.l2() + piece.l3()), 0u);
      }
      at += piece.payload;
    }
    EXPECT_FALSE(segmenter.next(*segment));
  }
}

TEST(Segmenter, TakesFetchedPayloadFromTheFetchedHeaderOnly) {
  const Shape shape{.payload = 3000};
  Bytes frame = make_frame(shape);
  auto whole = std::make_unique<Packet>(), segment = std::make_unique<Packet>();
  describe(frame, *whole);
  request(*whole, shape, Gso::tcp4, 16);
  ASSERT_TRUE(validate_offload(*whole));
  const Bytes original = frame;
  std::fill(frame.begin(), frame.begin() + Packet::header_max, std::uint8_t{0xee});
  Segmenter segmenter{*whole};
  Bytes joined;
  while (segmenter.next(*segment)) {
    const Bytes bytes = contents(*segment);
    joined.insert(joined.end(), bytes.begin() + shape.headers(), bytes.end());
  }
  EXPECT_EQ(joined, Bytes(original.begin() + shape.headers(), original.end()));
}

struct OffloadCase {
  const char* name;
  void (*spoil)(Packet&);
};

class HostileOffload : public ::testing::TestWithParam<OffloadCase> {};

TEST_P(HostileOffload, IsMalformed) {
  const Shape shape{.tags = 1, .payload = 3000};
  const Bytes frame = make_frame(shape);
  auto packet = std::make_unique<Packet>();
  describe(frame, *packet);
  request(*packet, shape, Gso::tcp4, 1000);
  ASSERT_TRUE(validate_offload(*packet));
  GetParam().spoil(*packet);
  EXPECT_FALSE(validate_offload(*packet));
}

constexpr OffloadCase hostile[] = {
    {"StartAtLength", [](Packet& p) { p.offload.checksum_start = 3058; }},
    {"OffsetBeyond", [](Packet& p) { p.offload.checksum_offset = 0xffff; }},
    {"StartMaximal", [](Packet& p) { p.offload.checksum_start = 0xffff; }},
    {"OverTheTag", [](Packet& p) { p.offload.checksum_start = 14, p.offload.checksum_offset = 0; }},
    {"OverAddresses", [](Packet& p) { p.offload.checksum_start = 0, p.offload.gso = Gso::none; }},
    {"InsideIp", [](Packet& p) { p.offload.checksum_start = 20, p.offload.gso = Gso::none; }},
    {"SizeZero", [](Packet& p) { p.offload.gso_size = 0; }},
    {"SizeOne", [](Packet& p) { p.offload.gso_size = 1; }},
    {"WrongFamily", [](Packet& p) { p.offload.gso = Gso::tcp6; }},
    {"WrongProtocol", [](Packet& p) { p.offload.gso = Gso::udp_l4; }},
    {"NoChecksum", [](Packet& p) { p.offload.checksum_needed = false; }},
    {"OffsetNotTcp", [](Packet& p) { p.offload.checksum_offset = 6; }},
    {"HeaderCut", [](Packet& p) { p.header_size = 50; }},
    {"IpTotalTooSmall", [](Packet& p) { p.header[20] = p.header[21] = std::byte{0}; }},
    {"IpHeaderTooSmall", [](Packet& p) { p.header[18] = std::byte{0x41}; }},
    {"IpVersion", [](Packet& p) { p.header[18] = std::byte{0x65}; }},
    {"Fragment", [](Packet& p) { p.header[24] = std::byte{0x20}; }},
    {"LaterFragment", [](Packet& p) { p.header[25] = std::byte{1}; }},
    {"ProtocolZero", [](Packet& p) { p.header[27] = std::byte{0}; }},
    {"TcpHeaderTooSmall", [](Packet& p) { p.header[50] = std::byte{0x40}; }},
};
INSTANTIATE_TEST_SUITE_P(Gso, HostileOffload, ::testing::ValuesIn(hostile),
                         [](const auto& test) { return std::string{test.param.name}; });

TEST(ValidateOffload, SurvivesRandomRequestsOnRandomHeaders) {
  Random random{5};
  auto packet = std::make_unique<Packet>(), segment = std::make_unique<Packet>();
  for (int round = 0; round < 60'000; ++round) {
    Shape shape{.ipv6 = (random() & 1) != 0, .udp = (random() & 2) != 0};
    shape.tags = random() % 3;
    shape.payload = random() % 400;
    Bytes frame = make_frame(shape);
    for (unsigned i = 0; i < random() % 4; ++i) {
      frame[random() % frame.size()] = static_cast<std::uint8_t>(random());
    }
    frame.resize(14 + random() % (frame.size() - 13));
    describe(frame, *packet);
    request(*packet, shape, static_cast<Gso>(random() % 4), random() % 300);
    if (random() % 4 == 0)
      packet->offload.checksum_start = static_cast<std::uint16_t>(random() % 200);
    if (random() % 4 == 0)
      packet->offload.checksum_offset = static_cast<std::uint16_t>(random() % 200);
    static_cast<void>(flow_hash(*packet));
    if (!validate_offload(*packet)) continue;
    const auto& offload = packet->offload;
    if (offload.checksum_needed) {
      ASSERT_LE(offload.checksum_start + offload.checksum_offset + 2, packet->header_size);
    }
    Segmenter segmenter{*packet};
    std::size_t bytes = 0, segments = 0;
    while (segmenter.next(*segment)) {
      bytes += segment->length - offload.header_length;
      ASSERT_LE(++segments, segments_max);
    }
    if (offload.gso != Gso::none) {
      ASSERT_EQ(bytes, frame.size() - offload.header_length);
    }
  }
}

TEST(ParseLayers, BoundsIpv6ExtensionHeaders) {
  Shape shape{.ipv6 = true, .ip_options = 64, .payload = 100};
  Bytes frame = make_frame(shape);
  for (unsigned i = 0; i < 8; ++i) {  // eight headers of eight bytes, each naming another
    frame[shape.l2() + 40 + 8 * i] = 60;
    frame[shape.l2() + 41 + 8 * i] = 0;
  }
  auto packet = std::make_unique<Packet>();
  describe(frame, *packet);
  EXPECT_FALSE(parse_layers(*packet).valid);
}

TEST(FlowHash, IsOneForAFlowAndDiffersBetweenFlows) {
  auto packet = std::make_unique<Packet>();
  const Shape shape{.payload = 10};
  Bytes frame = make_frame(shape);
  describe(frame, *packet);
  const auto hash = flow_hash(*packet);
  frame[frame.size() - 1] ^= 1;
  describe(tagged(frame, 10), *packet);
  EXPECT_EQ(flow_hash(*packet), hash);
  std::array<unsigned, 4> spread{};
  for (unsigned port = 0; port < 4000; ++port) {
    set16(frame, shape.l2() + shape.l3(), port);
    describe(frame, *packet);
    ++spread[(std::uint64_t{flow_hash(*packet)} * 4) >> 32];
  }
  for (const auto count : spread) EXPECT_NEAR(count, 1000.0, 150.0);
}

TEST(FlowHash, KeepsFragmentsOfADatagramTogether) {
  auto packet = std::make_unique<Packet>();
  Bytes first = make_frame({.udp = true, .payload = 100}), later = first;
  first[20] = 0x20;
  later[21] = 0x10;
  set16(later, 34, 0x5555);
  describe(first, *packet);
  const auto hash = flow_hash(*packet);
  describe(later, *packet);
  EXPECT_EQ(flow_hash(*packet), hash);
}

}  // namespace
}  // namespace millrace::vswitch

#include "net/offload.hpp"

#include <gtest/gtest.h>

#include "net/testing/frames.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
namespace gso = virtio::wire::net_gso;
namespace flag = virtio::wire::net_header_flag;
using base::le16;
using virtio::wire::NetHeader;
using vswitch::Gso;
using vswitch::Offload;

constexpr std::uint64_t everything = ~0ull;

NetHeader request(std::uint8_t flags, std::uint8_t type, std::uint16_t size = 1448) {
  NetHeader h{};
  h.flags = flags, h.gso_type = type;
  h.gso_size = le16{size}, h.csum_start = le16{34}, h.csum_offset = le16{16};
  return h;
}

TEST(HeaderSize, DependsOnNegotiatedFeaturesOnly) {
  EXPECT_EQ(header_size(0), 10u);
  EXPECT_EQ(header_size(nf::mrg_rxbuf), 12u);
  EXPECT_EQ(header_size(virtio::feature::version_1), 12u);
}

TEST(ReadRequest, TakesWhatWasNegotiated) {
  Offload o;
  ASSERT_TRUE(read_request(request(flag::needs_csum, gso::tcp4), everything, o));
  EXPECT_EQ(o.gso, Gso::tcp4);
  EXPECT_TRUE(o.checksum_needed);
  EXPECT_FALSE(o.checksum_verified);
  EXPECT_EQ(o.gso_size, 1448);
  EXPECT_EQ(o.checksum_start, 34);
  EXPECT_EQ(o.checksum_offset, 16);
  ASSERT_TRUE(read_request(request(flag::needs_csum, gso::tcp6 | gso::ecn), everything, o));
  EXPECT_EQ(o.gso, Gso::tcp6);
  EXPECT_TRUE(o.ecn);
  ASSERT_TRUE(read_request(request(flag::needs_csum, gso::udp_l4), everything, o));
  EXPECT_EQ(o.gso, Gso::udp_l4);
  ASSERT_TRUE(read_request(request(0, gso::none), 0, o));
  EXPECT_FALSE(o.checksum_needed);
}

TEST(ReadRequest, RefusesWhatWasNotNegotiated) {
  Offload o;
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::none), everything & ~nf::csum, o));
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::tcp4), everything & ~nf::host_tso4, o));
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::tcp6), everything & ~nf::host_tso6, o));
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::udp_l4), everything & ~nf::host_uso, o));
  EXPECT_FALSE(
      read_request(request(flag::needs_csum, gso::tcp4 | gso::ecn), everything & ~nf::host_ecn, o));
}

TEST(ReadRequest, RefusesContradictions) {
  Offload o;
  EXPECT_FALSE(read_request(request(0, gso::tcp4), everything, o)) << "no checksum request";
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::tcp4, 0), everything, o));
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::ecn), everything, o));
  EXPECT_FALSE(read_request(request(flag::needs_csum, gso::udp_l4 | gso::ecn), everything, o));
  for (unsigned type = 0; type < 0x80; ++type) {
    if (type == gso::none || type == gso::tcp4 || type == gso::tcp6 || type == gso::udp_l4)
      continue;
    const auto byte = static_cast<std::uint8_t>(type);
    EXPECT_FALSE(read_request(request(flag::needs_csum, byte), everything, o)) << type;
  }
}

TEST(Acceptance, SegmentationNeedsGuestChecksum) {
  const Acceptance a = Acceptance::of(everything & ~nf::guest_csum);
  EXPECT_FALSE(a.checksum || a.tso4 || a.tso6 || a.ecn || a.uso4 || a.uso6);
}

TEST(Acceptance, DecidesByTypeFamilyAndEcn) {
  const auto takes = [](const testing::FrameSpec& spec, std::uint64_t features) {
    testing::OwnedPacket owned{testing::make_frame(spec), spec};
    return Acceptance::of(features | nf::guest_csum).takes_whole(owned.packet);
  };
  const testing::FrameSpec tcp4{.gso = Gso::tcp4, .payload = 9000};
  const testing::FrameSpec tcp6{.ipv6 = true, .gso = Gso::tcp6, .payload = 9000};
  const testing::FrameSpec udp4{.udp = true, .gso = Gso::udp_l4, .payload = 9000};
  const testing::FrameSpec udp6{.ipv6 = true, .udp = true, .gso = Gso::udp_l4, .payload = 9000};
  EXPECT_TRUE(takes(tcp4, nf::guest_tso4));
  EXPECT_FALSE(takes(tcp4, nf::guest_tso6));
  EXPECT_TRUE(takes(tcp6, nf::guest_tso6));
  EXPECT_FALSE(takes(tcp6, nf::guest_tso4));
  EXPECT_TRUE(takes(udp4, nf::guest_uso4));
  EXPECT_FALSE(takes(udp4, nf::guest_uso6));
  EXPECT_TRUE(takes(udp6, nf::guest_uso6));
  EXPECT_FALSE(takes(udp6, nf::guest_uso4));
  testing::FrameSpec ecn = tcp4;
  ecn.ecn = true;
  EXPECT_FALSE(takes(ecn, nf::guest_tso4));
  EXPECT_TRUE(takes(ecn, nf::guest_tso4 | nf::guest_ecn));
}

TEST(Describe, TellsTheReceiverWhatIsLeftToDo) {
  Offload o;
  o.checksum_needed = true, o.checksum_start = 34, o.checksum_offset = 16;
  o.gso = Gso::tcp4, o.gso_size = 1400, o.header_length = 54, o.ecn = true;
  const NetHeader h = describe(o, Acceptance::of(everything));
  EXPECT_EQ(h.flags, flag::needs_csum);
  EXPECT_EQ(h.gso_type, gso::tcp4 | gso::ecn);
  EXPECT_EQ(h.gso_size.host(), 1400);
  EXPECT_EQ(h.hdr_len.host(), 54);
  EXPECT_EQ(h.csum_start.host(), 34);
  EXPECT_EQ(h.csum_offset.host(), 16);
  EXPECT_EQ(h.num_buffers.host(), 1);
}

TEST(Describe, SaysVerifiedOnlyToWhoNegotiatedIt) {
  Offload o;
  o.checksum_verified = true;
  EXPECT_EQ(describe(o, Acceptance::of(nf::guest_csum)).flags, flag::data_valid);
  EXPECT_EQ(describe(o, Acceptance::of(0)).flags, 0);
}

TEST(OffloadNames, AreWords) {
  EXPECT_EQ(offload_names(0), "none");
  EXPECT_EQ(offload_names(nf::csum | nf::host_tso4 | nf::guest_uso6), "csum tso4 guest_uso6");
}

}  // namespace
}  // namespace millrace::net

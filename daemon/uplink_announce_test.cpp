#include "daemon/uplink_announce.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace millrace::daemon {
namespace {

using vswitch::Mac;

constexpr vswitch::PortId guest = 3, lonely = 4, other_uplink = 5;
constexpr Mac mac_a{2, 0, 0, 0, 0, 1}, mac_b{2, 0, 0, 0, 0, 2}, mac_c{2, 0, 0, 0, 0, 3};

std::optional<bool> guests(vswitch::PortId port) {
  if (port == other_uplink) return std::nullopt;
  return port == lonely;
}

Mac source_of(const vswitch::Packet& packet) {
  Mac mac;
  std::memcpy(mac.data(), &packet.header[6], mac.size());
  return mac;
}

TEST(UplinkAnnounce, NamesEveryGuestOnce) {
  const auto frames = announcements({{mac_a, 0, guest, 0, true},
                                     {mac_b, 0, lonely, 5, false},
                                     {mac_c, 0, other_uplink, 5, false}},
                                    {}, guests);
  ASSERT_EQ(frames.size(), 2u);
  EXPECT_EQ(source_of(frames[0]), mac_a);
  EXPECT_EQ(source_of(frames[1]), mac_b);
  for (const auto& frame : frames) {
    EXPECT_EQ(frame.length, 60u);
    EXPECT_EQ(frame.header[0], std::byte{0xff});
    EXPECT_EQ(frame.header[12], std::byte{0x80});  // RARP
    EXPECT_EQ(frame.header[13], std::byte{0x35});
  }
}

TEST(UplinkAnnounce, TagsWhatATrunkCarries) {
  vswitch::UplinkConfig trunk;
  trunk.port.trunk = {10};
  const auto frames = announcements(
      {{mac_a, 10, guest, 0, true}, {mac_b, 11, guest, 0, true}, {mac_c, 0, guest, 0, true}}, trunk,
      guests);
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(source_of(frames[0]), mac_a);
  EXPECT_EQ(frames[0].length, 64u);
  EXPECT_EQ(frames[0].header[15], std::byte{10});
}

TEST(UplinkAnnounce, LeavesOutWhomTheUplinkDoesNotCarry) {
  vswitch::UplinkConfig uplink;
  uplink.port.isolated = true;
  uplink.port.access_vlan = 7;
  const auto of = [&] {
    return announcements(
        {{mac_a, 7, guest, 0, true}, {mac_b, 7, lonely, 0, true}, {mac_c, 0, guest, 0, true}},
        uplink, guests);
  };
  ASSERT_EQ(of().size(), 1u);
  EXPECT_EQ(source_of(of()[0]), mac_a);
  EXPECT_EQ(of()[0].length, 60u);
  uplink.mac = mac_b;
  EXPECT_TRUE(of().empty());
}

}  // namespace
}  // namespace millrace::daemon

#include "net/rx_filter.hpp"

#include <gtest/gtest.h>

#include "net/testing/fakes.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {
namespace {

namespace rx = virtio::wire::net_rx_command;
using Mac = RxFilter::Mac;

constexpr Mac own{0x52, 0x54, 0, 0, 0, 1}, other{0x52, 0x54, 0, 0, 0, 2};
constexpr Mac group{0x01, 0, 0x5e, 0, 0, 9}, everyone{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

vswitch::Packet packet_to(const Mac& to, int vlan = -1) {
  vswitch::Packet packet{};
  packet.header_size = 60;
  packet.length = 60;
  std::memcpy(packet.header.data(), to.data(), to.size());
  if (vlan < 0) return packet;
  packet.header[12] = std::byte{0x81};
  packet.header[14] = static_cast<std::byte>(vlan >> 8 | 0xe0);  // with a priority
  packet.header[15] = static_cast<std::byte>(vlan & 0xff);
  return packet;
}

bool takes(const RxFilter& filter, const Mac& to, int vlan = -1) {
  return filter.takes(packet_to(to, vlan));
}

RxFilter quiet() {
  RxFilter filter;
  filter.set_own(own);
  EXPECT_TRUE(filter.set_mode(rx::promisc, false));
  return filter;
}

TEST(RxFilter, BeginsWithEverything) {
  RxFilter filter;
  filter.filter_vlans();
  for (const Mac& to : {own, other, group, everyone}) {
    EXPECT_TRUE(takes(filter, to));
    EXPECT_TRUE(takes(filter, to, 7));
  }
}

TEST(RxFilter, ThenItsOwnAddressAndBroadcast) {
  RxFilter filter = quiet();
  EXPECT_TRUE(takes(filter, own));
  EXPECT_TRUE(takes(filter, everyone));
  EXPECT_FALSE(takes(filter, other));
  EXPECT_FALSE(takes(filter, group));
  filter.set_own(std::nullopt);
  EXPECT_TRUE(takes(filter, other)) << "nobody knows which address is the guest's";
}

TEST(RxFilter, FollowsTheTables) {
  RxFilter filter = quiet();
  RxFilter::Addresses stations, groups;
  stations.macs[0] = other, stations.count = 1;
  groups.macs[0] = group, groups.count = 1;
  filter.set_addresses(stations, {});
  EXPECT_TRUE(takes(filter, other));
  EXPECT_FALSE(takes(filter, group));
  filter.set_addresses({}, groups);
  EXPECT_FALSE(takes(filter, other));
  EXPECT_TRUE(takes(filter, group));
  stations.count = RxFilter::addresses_max + 1;
  filter.set_addresses(stations, {});
  EXPECT_TRUE(takes(filter, own));
  EXPECT_TRUE(takes(filter, {0x52, 0x54, 0, 0, 9, 9})) << "too many to keep: all of them";
  EXPECT_FALSE(takes(filter, group));
}

TEST(RxFilter, EveryModeDoesWhatItSays) {
  struct Case {
    std::uint8_t mode;
    bool own, other, group, everyone;
  };
  for (const auto& [mode, to_own, to_other, to_group, to_everyone] :
       {Case{rx::promisc, true, true, true, true}, Case{rx::allmulti, true, false, true, true},
        Case{rx::alluni, true, true, false, true}, Case{rx::nomulti, true, false, false, true},
        Case{rx::nouni, false, false, false, true}, Case{rx::nobcast, true, false, false, false}}) {
    RxFilter filter = quiet();
    ASSERT_TRUE(filter.set_mode(mode, true));
    EXPECT_EQ(takes(filter, own), to_own) << int{mode};
    EXPECT_EQ(takes(filter, other), to_other) << int{mode};
    EXPECT_EQ(takes(filter, group), to_group) << int{mode};
    EXPECT_EQ(takes(filter, everyone), to_everyone) << int{mode};
    ASSERT_TRUE(filter.set_mode(mode, false));
    EXPECT_FALSE(takes(filter, other)) << int{mode};
    EXPECT_TRUE(takes(filter, everyone)) << int{mode};
  }
  RxFilter filter;
  EXPECT_FALSE(filter.set_mode(rx::nobcast + 1, true));
}

TEST(RxFilter, TakesTaggedFramesByTheirVlan) {
  RxFilter filter;
  filter.take_all_addresses();
  EXPECT_TRUE(takes(filter, other, 7)) << "VLANs are not filtered yet";
  filter.filter_vlans();
  EXPECT_TRUE(takes(filter, other));
  EXPECT_FALSE(takes(filter, other, 7));
  EXPECT_TRUE(filter.set_vlan(7, true));
  EXPECT_TRUE(takes(filter, other, 7));
  EXPECT_FALSE(takes(filter, other, 8));
  EXPECT_TRUE(filter.set_vlan(7, false));
  EXPECT_FALSE(takes(filter, other, 7));
  EXPECT_TRUE(filter.set_vlan(4095, true));
  EXPECT_FALSE(filter.set_vlan(4096, true));
}

}  // namespace
}  // namespace millrace::net

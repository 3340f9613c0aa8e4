#include "sriov/netlink.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include <array>
#include <cstring>

namespace millrace::sriov {
namespace {

using ::testing::HasSubstr;

// A message as the kernel answers RTM_GETLINK, with `told` functions while it counts `count`.
class Answer {
 public:
  Answer() {
    header_ = mnl_nlmsg_put_header(buffer_.data());
    header_->nlmsg_type = RTM_NEWLINK;
    auto* info = static_cast<ifinfomsg*>(mnl_nlmsg_put_extra_header(header_, sizeof(ifinfomsg)));
    info->ifi_flags = IFF_UP;
    const Mac mac{0x52, 0x54, 0, 0, 0, 1};
    mnl_attr_put(header_, IFLA_ADDRESS, mac.size(), mac.data());
  }
  void functions(unsigned told, unsigned count, std::uint32_t spoof = 1) {
    mnl_attr_put_u32(header_, IFLA_NUM_VF, count);
    auto* list = mnl_attr_nest_start(header_, IFLA_VFINFO_LIST);
    for (unsigned vf = 0; vf < told; ++vf) {
      auto* info = mnl_attr_nest_start(header_, IFLA_VF_INFO);
      ifla_vf_mac mac{vf, {2, 0, 0, 0, 0, static_cast<std::uint8_t>(vf)}};
      mnl_attr_put(header_, IFLA_VF_MAC, sizeof(mac), &mac);
      auto* vlans = mnl_attr_nest_start(header_, IFLA_VF_VLAN_LIST);
      const ifla_vf_vlan_info vlan{vf, 100 + vf, 5, 0xa888};  // 0x88a8, as on the wire
      mnl_attr_put(header_, IFLA_VF_VLAN_INFO, sizeof(vlan), &vlan);
      mnl_attr_nest_end(header_, vlans);
      const ifla_vf_rate rate{vf, 10, 200};
      mnl_attr_put(header_, IFLA_VF_RATE, sizeof(rate), &rate);
      const ifla_vf_spoofchk check{vf, spoof};
      mnl_attr_put(header_, IFLA_VF_SPOOFCHK, sizeof(check), &check);
      const ifla_vf_trust trust{vf, 0};
      mnl_attr_put(header_, IFLA_VF_TRUST, sizeof(trust), &trust);
      const ifla_vf_link_state link{vf, IFLA_VF_LINK_STATE_DISABLE};
      mnl_attr_put(header_, IFLA_VF_LINK_STATE, sizeof(link), &link);
      mnl_attr_nest_end(header_, info);
    }
    mnl_attr_nest_end(header_, list);
  }
  [[nodiscard]] std::span<const std::byte> bytes() const {
    return {buffer_.data(), header_->nlmsg_len};
  }

 private:
  alignas(8) std::array<std::byte, 4096> buffer_{};
  nlmsghdr* header_;
};

TEST(NetlinkMessage, TellsTheValuesOfEveryFunction) {
  Answer answer;
  answer.functions(3, 3);
  const auto link = read_link(answer.bytes());
  ASSERT_TRUE(link) << link.error().message;
  EXPECT_TRUE(link->up);
  EXPECT_FALSE(link->carrier);
  EXPECT_EQ(link->mac, (Mac{0x52, 0x54, 0, 0, 0, 1}));
  ASSERT_EQ(link->functions.size(), 3u);
  const auto& vf = link->functions[2];
  EXPECT_EQ(vf.mac, (Mac{2, 0, 0, 0, 0, 2}));
  EXPECT_EQ(vf.vlan, (Vlan{102, 5, true}));
  EXPECT_EQ(vf.rate, (Rate{10, 200}));
  EXPECT_EQ(vf.spoof_check, SpoofCheck{true});
  EXPECT_EQ(vf.trust, Trust{false});
  EXPECT_EQ(vf.link, LinkState::off);
}

TEST(NetlinkMessage, WhatADriverDoesNotTellIsAbsent) {
  Answer answer;
  answer.functions(1, 1, 0xffffffff);
  const auto link = read_link(answer.bytes());
  ASSERT_TRUE(link);
  EXPECT_FALSE(link->functions[0].spoof_check.has_value());
  EXPECT_TRUE(link->functions[0].trust.has_value());
}

TEST(NetlinkMessage, AListThatWasCutIsAnError) {
  Answer answer;
  answer.functions(2, 3);
  const auto link = read_link(answer.bytes());
  EXPECT_THAT(link.error().message, HasSubstr("tells of 2 of 3 VFs"));
}

TEST(NetlinkMessage, AnInterfaceWithoutFunctionsHasNone) {
  const auto link = read_link(Answer{}.bytes());
  ASSERT_TRUE(link);
  EXPECT_TRUE(link->functions.empty());
}

TEST(NetlinkMessage, NonsenseIsAnErrorAtEveryLength) {
  Answer answer;
  answer.functions(2, 2);
  const auto whole = answer.bytes();
  std::vector<std::byte> bytes(whole.begin(), whole.end());
  for (std::size_t size = 0; size < bytes.size(); size += 4) {
    // the header says more than there is
    std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(read_link(cut)) << size;
    if (size < sizeof(nlmsghdr)) continue;
    // the header is honest and the attributes are not
    const auto length = static_cast<std::uint32_t>(size);
    std::memcpy(cut.data(), &length, sizeof(length));
    (void)read_link(cut);
  }
}

// A setting's own structure in a message of ours: behind header, link, list and info.
template <class Wire>
Wire wire_of(const std::vector<std::byte>& message, unsigned nests = 2) {
  Wire out{};
  const std::size_t at = sizeof(nlmsghdr) + sizeof(ifinfomsg) + (nests + 1) * sizeof(nlattr);
  EXPECT_EQ(message.size(), at + sizeof(out));
  std::memcpy(&out, message.data() + at, std::min(sizeof(out), message.size() - at));
  return out;
}

TEST(NetlinkMessage, SetsEachKindOfValue) {
  const auto mac = wire_of<ifla_vf_mac>(make_set(7, 3, Mac{2, 0, 0, 0, 0, 9}));
  EXPECT_EQ(mac.vf, 3u);
  EXPECT_EQ(mac.mac[0], 2);
  EXPECT_EQ(mac.mac[5], 9);
  const auto vlan = wire_of<ifla_vf_vlan>(make_set(7, 3, Vlan{12, 4, false}));
  EXPECT_EQ(vlan.vlan, 12u);
  EXPECT_EQ(vlan.qos, 4u);
  const auto outer = wire_of<ifla_vf_vlan_info>(make_set(7, 3, Vlan{12, 4, true}), 3);
  EXPECT_EQ(outer.vlan, 12u);
  EXPECT_EQ(outer.vlan_proto, 0xa888);
  const auto rate = wire_of<ifla_vf_rate>(make_set(7, 3, Rate{5, 50}));
  EXPECT_EQ(rate.min_tx_rate, 5u);
  EXPECT_EQ(rate.max_tx_rate, 50u);
  EXPECT_EQ(wire_of<ifla_vf_spoofchk>(make_set(7, 3, SpoofCheck{true})).setting, 1u);
  EXPECT_EQ(wire_of<ifla_vf_trust>(make_set(7, 3, Trust{true})).setting, 1u);
  EXPECT_EQ(wire_of<ifla_vf_link_state>(make_set(7, 3, LinkState::off)).link_state, 2u);
}

TEST(Netlink, AsksTheKernel) {
  auto netlink = Netlink::open();
  ASSERT_TRUE(netlink) << netlink.error().message;
  const auto loopback = netlink->link("lo");
  ASSERT_TRUE(loopback) << loopback.error().message;
  EXPECT_TRUE(loopback->functions.empty());
  const auto absent = netlink->link("no-such-if");
  EXPECT_THAT(absent.error().message, HasSubstr("no-such-if: No such device"));
  // refused by the kernel, for want of rights or of a driver that could
  EXPECT_FALSE(netlink->set("lo", 0, Trust{true}));
  ASSERT_TRUE(netlink->link("lo"));  // and the next answer is the one to the next question
}

}  // namespace
}  // namespace millrace::sriov

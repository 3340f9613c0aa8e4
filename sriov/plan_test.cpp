#include "sriov/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace millrace::sriov {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Mac mac_a{0x52, 0x54, 0, 0, 0, 1}, mac_b{0x52, 0x54, 0, 0, 0, 2};
constexpr Mac mac_pf{0x52, 0x54, 0, 0, 0, 0x77};

Current with(unsigned vfs, bool up = true) {
  Current now;
  now.function.address = {0, 1, 0, 0};
  now.function.vfs_max = 8;
  now.function.netdev = "eth7";
  now.link.emplace();
  now.link->up = now.link->carrier = up;
  now.link->mac = mac_pf;
  for (unsigned index = 0; index < vfs; ++index) {
    VirtualFunction vf;
    vf.index = index;
    vf.address = {0, 1, 16, static_cast<std::uint8_t>(index)};
    vf.group = 10 + index;
    now.function.functions.push_back(vf);
    VfValues values;
    values.mac = Mac{};
    values.vlan = Vlan{};
    values.rate = Rate{};
    values.spoof_check = SpoofCheck{true};
    values.link = LinkState::automatic;  // and nothing about trust
    now.link->functions.push_back(values);
  }
  return now;
}

PfWish wish_with(std::optional<unsigned> vfs) {
  PfWish wish;
  wish.address = {0, 1, 0, 0};
  wish.vfs = vfs;
  return wish;
}

std::vector<std::string> lines(const Plan& plan) {
  std::vector<std::string> out;
  for (const auto& step : plan) out.push_back(format(step));
  return out;
}

TEST(Plan, NothingIsDoneWhereAllIsAsWished) {
  auto now = with(2);
  now.function.autoprobe = false;
  now.link->functions[1].mac = mac_a;
  auto wish = wish_with(2);
  wish.functions.push_back(
      {1, {.mac = mac_a, .vlan = Vlan{}, .spoof_check = SpoofCheck{true}}, {}});
  EXPECT_THAT(plan_functions(now, wish), IsEmpty());
  EXPECT_THAT(plan_values(now, wish, false), IsEmpty());
  EXPECT_EQ(difference(now, wish), "");
}

TEST(Plan, FunctionsAreMadeInOrder) {
  EXPECT_THAT(lines(plan_functions(with(0, false), wish_with(4))),
              ElementsAre("autoprobe off", "interface up", "wait for the link", "4 VFs",
                          "wait for the link"));
}

TEST(Plan, AnotherNumberGoesByZero) {
  auto now = with(2);
  now.function.autoprobe = false;
  EXPECT_THAT(lines(plan_functions(now, wish_with(3))),
              ElementsAre("0 VFs", "3 VFs", "wait for the link"));
  EXPECT_THAT(lines(plan_functions(now, wish_with(0))), ElementsAre("0 VFs", "wait for the link"));
}

TEST(Plan, AdoptedFunctionsAreLeftAndAutoprobeToo) {
  EXPECT_THAT(plan_functions(with(2), wish_with(std::nullopt)), IsEmpty());
  auto wish = wish_with(std::nullopt);
  wish.autoprobe = false;
  EXPECT_THAT(lines(plan_functions(with(2), wish)), ElementsAre("autoprobe off"));
}

TEST(Plan, OnlyWhatDiffersIsSetInTheOrderOfSettings) {
  auto now = with(2);
  now.link->functions[0].rate = Rate{0, 100};
  auto wish = wish_with(2);
  wish.driver = "vfio-pci";
  now.function.functions[1].driver = "vfio-pci";
  wish.functions.push_back({0,
                            {.mac = mac_a,
                             .vlan = Vlan{10, 3, false},
                             .rate = Rate{0, 100},
                             .spoof_check = SpoofCheck{false},
                             .trust = Trust{true},
                             .link = LinkState::automatic},
                            {}});
  EXPECT_THAT(lines(plan_values(now, wish, false)),
              ElementsAre("VF 0: VLAN 10 (QoS 3) (was no VLAN)",
                          "VF 0: MAC 52:54:00:00:00:01 (was MAC 00:00:00:00:00:00)",
                          "VF 0: spoof check off (was spoof check on)", "VF 0: trust on",
                          "VF 0: driver vfio-pci (was no driver)"));
  EXPECT_EQ(plan_values(now, wish, true).size(), 7u);  // the rate and the link once more
}

TEST(Plan, AFunctionMayHaveADriverOfItsOwn) {
  auto now = with(2);
  now.function.functions[0].driver = now.function.functions[1].driver = "vfdriver";
  auto wish = wish_with(2);
  wish.driver = "vfio-pci";
  wish.functions.push_back({1, {}, ""});
  EXPECT_THAT(lines(plan_values(now, wish, false)),
              ElementsAre("VF 0: driver vfio-pci (was driver vfdriver)",
                          "VF 1: no driver (was driver vfdriver)"));
}

TEST(Plan, WhatCannotBeIsRefused) {
  const auto line = [](const Current& now, const PfWish& wish) {
    const auto result = check_wish(now, wish);
    return result ? std::string{} : result.error().message;
  };
  EXPECT_EQ(line(with(2), wish_with(8)), "");
  EXPECT_EQ(line(with(2), wish_with(9)), "vfs = 9 is more than the 8 VFs that it can have");
  auto wish = wish_with(std::nullopt);
  wish.functions.push_back({2, {.mac = mac_a}, {}});
  EXPECT_EQ(line(with(2), wish),
            "there is no VF 2: it has the VFs 0 to 1; say with vfs how many "
            "are to be made");
  EXPECT_EQ(line(with(3), wish), "");
  auto headless = with(3);
  headless.link.reset();
  headless.function.driver = "vfio-pci";
  EXPECT_THAT(line(headless, wish), HasSubstr("no network interface (driver vfio-pci)"));
}

TEST(Plan, OneAddressIsGivenOnce) {
  const auto line = [](const Current& now, const PfWish& wish) {
    const auto result = check_wish(now, wish);
    return result ? std::string{} : result.error().message;
  };
  auto now = with(2);
  now.link->functions[0].mac = mac_a;
  auto wish = wish_with(std::nullopt);
  wish.functions.push_back({1, {.mac = mac_a}, {}});
  EXPECT_EQ(line(now, wish),
            "VF 1: MAC 52:54:00:00:00:01 would be the one of VF 0, too; give each "
            "its own");
  wish.functions.push_back({0, {.mac = mac_b}, {}});
  EXPECT_EQ(line(now, wish), "");
  wish.functions[1].values.mac = mac_pf;
  EXPECT_THAT(line(now, wish), HasSubstr("VF 0: MAC 52:54:00:00:00:77 would be the one of the PF"));
  // functions that are made anew have none of the old addresses
  wish.functions.pop_back();
  wish.vfs = 3;
  EXPECT_EQ(line(now, wish), "");
}

TEST(Plan, NothingIsTakenFromWhoHoldsIt) {
  const auto now = with(2);
  const Holders holders{{11, {{4711, "qemu"}}}};
  const auto line = [&](const Plan& plan, pid_t self) {
    const auto result = check_free(now, plan, holders, self);
    return result ? std::string{} : result.error().message;
  };
  EXPECT_EQ(line({SetCount{0}}, 1),
            "cannot do: 0 VFs: VF 1 (0000:01:10.1) is held by process 4711 "
            "(qemu); end it first");
  EXPECT_NE(line({SetCount{0}}, 4711), "");  // not even from ourselves
  const SetValue trust_0{0, Trust{true}, {}}, trust_1{1, Trust{true}, {}};
  EXPECT_EQ(line({trust_0}, 1), "");
  EXPECT_THAT(line({trust_0, trust_1}, 1), HasSubstr("VF 1: trust on: VF 1"));
  EXPECT_EQ(line({trust_1}, 4711), "");  // what is our own we may set
  EXPECT_NE(line({Bind{1, {}, "a", "b"}}, 4711), "");
  EXPECT_EQ(line({sriov::SetUp{true}, SetAutoprobe{false}}, 1), "");
}

TEST(Plan, AnInterfaceOfTheHostsThatIsUpHoldsItsFunction) {
  auto now = with(2);
  now.function.functions[0].netdev = "eth9";
  const Plan none{SetCount{0}};
  EXPECT_TRUE(check_free(now, none, {}, 1));
  now.function.functions[0].netdev_up = true;
  const auto line = check_free(now, none, {}, 1).error().message;
  EXPECT_THAT(line, HasSubstr("eth9 is up; take it down first (ip link set eth9 down)"));
}

TEST(Plan, TheWayBackLeadsToWhatWas) {
  auto before = with(2, false);
  before.link->functions[1].mac = mac_a;
  before.function.functions[1].driver = "vfdriver";
  auto now = before;
  now.link->up = true;
  now.function.autoprobe = false;
  now.link->functions[1].mac = mac_b;
  now.function.functions[1].driver = "vfio-pci";
  const auto wish = wish_of(before);
  EXPECT_THAT(lines(plan_functions(now, wish)), ElementsAre("autoprobe on"));
  EXPECT_THAT(lines(plan_values(now, wish, false)),
              ElementsAre("VF 1: MAC 52:54:00:00:00:01 (was MAC 52:54:00:00:00:02)",
                          "VF 1: driver vfdriver (was driver vfio-pci)", "interface down"));
}

TEST(Plan, TheDifferenceIsTold) {
  auto now = with(2);
  auto wish = wish_with(3);
  EXPECT_EQ(difference(now, wish), "there are 2 VFs, wanted are 3");
  wish = wish_with(2);
  wish.functions.push_back({1, {.rate = Rate{0, 50}, .trust = Trust{true}}, {}});
  EXPECT_EQ(difference(now, wish),
            "VF 1: wanted is rate 0 to 50 Mbit/s, the driver says rate 0 to 0 Mbit/s");
  now.link->functions[1].rate = Rate{0, 50};
  EXPECT_EQ(difference(now, wish), "");  // of trust the driver says nothing
  now.link->up = false;
  EXPECT_EQ(difference(now, wish), "its interface is down");
}

}  // namespace
}  // namespace millrace::sriov

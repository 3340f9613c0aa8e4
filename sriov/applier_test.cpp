#include "sriov/applier.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sriov/testing/fake_host.hpp"

namespace millrace::sriov {
namespace {

using ::testing::ElementsAre;
using testing::FakeHost;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Mac mac_a{0x52, 0x54, 0, 0, 0, 1}, mac_b{0x52, 0x54, 0, 0, 0, 2};
constexpr Applier::Settings quick{std::chrono::milliseconds{0}, std::chrono::milliseconds{1}};

PfWish four_functions() {
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.vfs = 4;
  wish.driver = "vfio-pci";
  wish.functions.push_back({0, {.mac = mac_a, .vlan = Vlan{10, 3, false}}, {}});
  wish.functions.push_back({2, {.mac = mac_b, .trust = Trust{true}}, {}});
  return wish;
}

TEST(Applier, MakesBindsAndSetsInOrder) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  const auto done = applier.apply(four_functions());
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_THAT(host.acts, ElementsAre("autoprobe off", "up", "count 4", "vf 0 VLAN 10 (QoS 3)",
                                     "vf 0 MAC 52:54:00:00:00:01", "bind 0000:01:10.0 vfio-pci",
                                     "bind 0000:01:10.2 vfio-pci", "vf 2 MAC 52:54:00:00:00:02",
                                     "vf 2 trust on", "bind 0000:01:10.4 vfio-pci",
                                     "bind 0000:01:10.6 vfio-pci"));
  EXPECT_EQ(done->size(), host.acts.size());
  EXPECT_EQ(host.values(2).mac, mac_b);
  EXPECT_EQ(host.driver(3), "vfio-pci");
}

TEST(Applier, ASecondTimeNothingIsDone) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  ASSERT_TRUE(applier.apply(four_functions()));
  host.acts.clear();
  const auto again = applier.apply(four_functions());
  ASSERT_TRUE(again);
  EXPECT_THAT(*again, IsEmpty());
  EXPECT_THAT(host.acts, IsEmpty());
}

TEST(Applier, ARefusedValueBringsEverythingBack) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  host.refuse("vf 2 trust", "Operation not supported");
  const auto done = applier.apply(four_functions());
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message,
            "PF 0000:01:00.0: VF 2: trust on (was trust off): Operation not supported; everything "
            "is as it was before");
  EXPECT_FALSE(host.up());
  const auto now = applier.read(FakeHost::pf);
  ASSERT_TRUE(now);
  EXPECT_TRUE(now->function.functions.empty());
  EXPECT_TRUE(now->function.autoprobe);
}

TEST(Applier, AdoptedFunctionsGetTheirOldValuesBack) {
  FakeHost host{3, "vfdriver"};
  Applier applier{host.sysfs(), host, quick};
  auto wish = four_functions();
  wish.vfs.reset();
  ASSERT_TRUE(host.set("eth7", 0, Setting{mac_b}));
  wish.functions[1].values.mac = Mac{2, 0, 0, 0, 0, 3};
  host.refuse("bind 0000:01:10.4 vfio-pci", "No such device");
  host.acts.clear();
  const auto done = applier.apply(wish);
  ASSERT_FALSE(done);
  EXPECT_THAT(done.error().message,
              HasSubstr("VF 2: driver vfio-pci (was driver vfdriver): No such "
                        "device; everything is as it was before"));
  EXPECT_EQ(host.values(0).mac, mac_b);
  EXPECT_EQ(host.values(0).vlan, Vlan{});
  EXPECT_EQ(host.values(2).trust, Trust{false});
  for (unsigned index = 0; index < 3; ++index) EXPECT_EQ(host.driver(index), "vfdriver") << index;
}

TEST(Applier, TheNumberGoesBackWithTheValuesThatWereThere) {
  FakeHost host{2, "vfdriver"};
  Applier applier{host.sysfs(), host, quick};
  ASSERT_TRUE(host.set("eth7", 1, Setting{mac_a}));
  auto wish = four_functions();
  host.refuse("vf 0 MAC", "Invalid argument");
  ASSERT_FALSE(applier.apply(wish));
  const auto now = applier.read(FakeHost::pf);
  ASSERT_TRUE(now);
  ASSERT_EQ(now->function.functions.size(), 2u);
  EXPECT_EQ(host.values(1).mac, mac_a);
  EXPECT_EQ(host.driver(1), "vfdriver");
}

TEST(Applier, AWayBackThatFailsIsSaid) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  host.refuse("vf 2 trust", "Operation not supported");
  host.refuse("count 0", "Device or resource busy");
  const auto done = applier.apply(four_functions());
  EXPECT_THAT(done.error().message, HasSubstr("and not everything could be brought back: 0 VFs: "
                                              "Device or resource busy"));
}

TEST(Applier, AValueThatDoesNotHoldIsFound) {
  FakeHost host{1};
  Applier applier{host.sysfs(), host, quick};
  host.forgets_rates = true;
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.functions.push_back({0, {.mac = mac_a, .rate = Rate{0, 100}}, {}});
  const auto done = applier.apply(wish);
  ASSERT_FALSE(done);
  EXPECT_THAT(
      done.error().message,
      HasSubstr("set, but not so: VF 0: wanted is rate 0 to 100 Mbit/s, the driver says rate "
                "0 to 0 Mbit/s; everything is as it was before"));
  EXPECT_EQ(host.values(0).mac, Mac{});
}

TEST(Applier, AValueThatTheDriverDoesNotTellIsBelieved) {
  FakeHost host{1};
  host.hides_trust = true;
  Applier applier{host.sysfs(), host, quick};
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.functions.push_back({0, {.trust = Trust{true}}, {}});
  const auto done = applier.apply(wish);
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(host.values(0).trust, Trust{true});
}

TEST(Applier, AHeldFunctionIsNotTakenAway) {
  FakeHost host{2, "vfio-pci"};
  Applier applier{host.sysfs(), host, quick};
  host.hold(1, 4711, "qemu");
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.vfs = 3;
  wish.autoprobe = true;
  auto done = applier.apply(wish);
  ASSERT_FALSE(done);
  EXPECT_THAT(done.error().message, HasSubstr("held by process 4711 (qemu)"));
  EXPECT_THAT(host.acts, IsEmpty());
  // what touches it not may be done
  wish.vfs = 2;
  wish.functions.push_back({0, {.mac = mac_a}, {}});
  EXPECT_TRUE(applier.apply(wish));
  wish.functions[0].index = 1;
  wish.functions[0].values.mac = mac_b;
  EXPECT_FALSE(applier.apply(wish));
}

TEST(Applier, AHolderThatCannotBeSeenIsFoundByItsGroup) {
  FakeHost host{2, "vfio-pci"};
  Applier applier{host.sysfs(), host, quick};
  host.hold_unseen(1);
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.vfs = 0;
  const auto done = applier.apply(wish);
  ASSERT_FALSE(done);
  EXPECT_THAT(done.error().message,
              HasSubstr("VF 1 (0000:01:10.2) is held by a process that cannot be seen from here"));
  EXPECT_THAT(host.acts, IsEmpty());
}

TEST(Applier, LostValuesComeBackAndSilentLossesOnDemand) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  ASSERT_TRUE(applier.apply(four_functions()));
  host.lose_values();
  host.acts.clear();
  ASSERT_TRUE(applier.apply(four_functions()));
  EXPECT_EQ(host.acts.size(), 4u);
  EXPECT_EQ(host.values(0).mac, mac_a);
  host.acts.clear();
  const auto all = applier.apply(four_functions(), Applier::Mode::rewrite);
  ASSERT_TRUE(all);
  EXPECT_THAT(*all, ElementsAre("interface down", "interface up", "VF 0: VLAN 10 (QoS 3)",
                                "VF 0: MAC 52:54:00:00:00:01", "VF 2: MAC 52:54:00:00:00:02",
                                "VF 2: trust on"));
}

TEST(Applier, AHolderIsGivenBackWhatWasLost) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  ASSERT_TRUE(applier.apply(four_functions()));
  host.hold(0, 4711, "qemu");
  host.hold_unseen(2);
  host.lose_values();
  EXPECT_FALSE(applier.apply(four_functions()));
  ASSERT_TRUE(applier.apply(four_functions(), Applier::Mode::restore));
  EXPECT_EQ(host.values(0).mac, mac_a);
  EXPECT_EQ(host.values(2).mac, mac_b);
  ASSERT_TRUE(applier.apply(four_functions(), Applier::Mode::rewrite));
  // and nothing is taken from him
  auto fewer = four_functions();
  fewer.vfs = 3;
  EXPECT_FALSE(applier.apply(fewer, Applier::Mode::rewrite));
  auto unbound = four_functions();
  unbound.driver = "";
  EXPECT_FALSE(applier.apply(unbound, Applier::Mode::restore));
}

TEST(Applier, ARateWaitsForALinkThatIsNotSettled) {
  FakeHost host{1};
  Applier patient{host.sysfs(), host, {std::chrono::minutes{1}, std::chrono::milliseconds{1}}};
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.functions.push_back({0, {.rate = Rate{0, 100}}, {}});
  host.refuse("vf 0 rate", "Invalid argument");  // once
  EXPECT_FALSE(patient.apply(wish));             // nothing happened to the link: refused at once
  host.refuse("vf 0 rate", "Invalid argument");
  ASSERT_TRUE(patient.apply(wish, Applier::Mode::rewrite));
  EXPECT_EQ(host.values(0).rate, (Rate{0, 100}));
  wish.vfs = 2;
  host.refuse("vf 0 rate", "Invalid argument");
  EXPECT_TRUE(patient.apply(wish));  // functions made anew
  EXPECT_EQ(host.values(0).rate, (Rate{0, 100}));
  wish.vfs = 3;
  host.refuse("vf 0 trust", "Operation not supported");
  wish.functions[0].values.trust = Trust{true};
  EXPECT_FALSE(patient.apply(wish));  // what no link helps is refused at once
}

TEST(Applier, NoLinkIsSaidAndNoReasonToStop) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  host.no_carrier = true;
  const auto done = applier.apply(four_functions());
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_THAT(*done, ::testing::Contains("no link at eth7 after 0 ms; going on without"));
}

TEST(Applier, AnAbsentPhysicalFunctionIsOneLine) {
  FakeHost host;
  Applier applier{host.sysfs(), host, quick};
  PfWish wish;
  wish.address = {0, 9, 0, 0};
  EXPECT_THAT(applier.apply(wish).error().message,
              HasSubstr("PF 0000:09:00.0: there is no PCI function 0000:09:00.0"));
}

}  // namespace
}  // namespace millrace::sriov

#include "sriov/vf_pool.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "sriov/testing/pool_test.hpp"

namespace millrace::sriov {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using testing::FakeHost;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using VfPoolTest = testing::PoolTest;

TEST_F(VfPoolTest, LendsEachOnceNearFirst) {
  // the fake's even functions are on node 0, the odd ones on node 1
  EXPECT_EQ(lent({"a", FakeHost::pf, 1}), 1u);
  EXPECT_EQ(lent({"b", std::nullopt, 1}), 3u);
  EXPECT_EQ(lent({"c", FakeHost::pf, 1}), 0u);  // far, and better than none
  EXPECT_EQ(lent({"d", FakeHost::pf, base::any_node}), 2u);
  EXPECT_EQ(pool.holder_of(FakeHost::pf, 3), "b");
  const auto none = pool.lease({"e", FakeHost::pf, 0});
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, HasSubstr("no VF is free: "));
  EXPECT_THAT(none.error().message, HasSubstr("VF 0 is lent to c"));
  EXPECT_THAT(none.error().message, HasSubstr("VF 2 is lent to d"));
  leases.erase(leases.begin() + 2);
  EXPECT_EQ(pool.holder_of(FakeHost::pf, 0), "");
  EXPECT_EQ(lent({"e", FakeHost::pf, 1}), 0u);
}

TEST_F(VfPoolTest, OneThatFailedIsLentLast) {
  const auto failed = FakeHost::vf(0);
  EXPECT_EQ(lent({.holder = "a", .last = failed}), 1u);
  EXPECT_EQ(lent({.holder = "b", .last = failed}), 2u);
  EXPECT_EQ(lent({.holder = "c", .last = failed}), 3u);
  EXPECT_EQ(lent({.holder = "d", .last = failed}), 0u);  // better than none
}

TEST_F(VfPoolTest, WhatSomebodyElseHasIsNotLent) {
  host.hold(0, 4711, "qemu");
  host.netdev_up(1, "eth9");
  host.hold_unseen(2);
  EXPECT_EQ(lent({"a"}), 3u);
  const auto none = pool.lease({"b"});
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, HasSubstr("VF 0 is held by process 4711 (qemu)"));
  EXPECT_THAT(none.error().message, HasSubstr("VF 1 is held by the host's network: eth9 is up"));
  EXPECT_THAT(none.error().message, HasSubstr("VF 2: Device or resource busy"));
}

TEST_F(VfPoolTest, AFunctionComesBackResetWithTheValuesItHad) {
  const VfValues before = host.values(0);
  EXPECT_EQ(lent({"a"}), 0u);
  ASSERT_TRUE(leases[0].set(Trust{true}));
  ASSERT_TRUE(leases[0].set(Mac{2, 0, 0, 0, 0, 1}));
  ASSERT_TRUE(leases[0].set(Mac{2, 0, 0, 0, 0, 2}));
  EXPECT_EQ(leases[0].values()->mac, (Mac{2, 0, 0, 0, 0, 2}));
  host.acts.clear();
  leases.clear();
  EXPECT_THAT(host.acts,
              ElementsAre("reset 0000:01:10.0", "vf 0 MAC 00:00:00:00:00:00", "vf 0 trust off"));
  EXPECT_EQ(host.values(0), before);
  EXPECT_EQ(pool.leased(), 0u);
  EXPECT_THAT(warnings, IsEmpty());
}

TEST_F(VfPoolTest, AFunctionMayBeResetElsewhereBeforeItComesBack) {
  EXPECT_EQ(lent({"a"}), 0u);
  ASSERT_TRUE(leases[0].set(Trust{true}));
  host.acts.clear();
  std::thread{[this] { leases[0].reset(); }}.join();
  EXPECT_THAT(host.acts, ElementsAre("reset 0000:01:10.0"));
  EXPECT_EQ(pool.holder_of(FakeHost::pf, 0), "a");  // nobody else gets it meanwhile
  leases.clear();
  EXPECT_THAT(host.acts, ElementsAre("reset 0000:01:10.0", "vf 0 trust off"));
  EXPECT_EQ(lent({"b"}), 0u);
  host.refuse("reset", "Inappropriate ioctl for device");
  leases[0].reset();
  EXPECT_THAT(warnings, IsEmpty());
  leases.clear();
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("VF 0: not reset when it was given back: Inappr")));
}

TEST_F(VfPoolTest, OneThatWasNotUsedIsNotReset) {
  EXPECT_EQ(lent({"a"}), 0u);
  ASSERT_TRUE(leases[0].set(Trust{true}));
  host.acts.clear();
  leases[0].was_not_used();
  leases.clear();
  EXPECT_THAT(host.acts, ElementsAre("vf 0 trust off"));
}

TEST_F(VfPoolTest, WhatIsChangedIsWrittenDownBefore) {
  std::vector<ChangedVf> kept;
  std::size_t acts_before = 0;
  pool.keep_by([&](const std::vector<ChangedVf>& changed) -> base::Result<void> {
    kept = changed;
    acts_before = host.acts.size();
    return {};
  });
  const auto before = host.values(0);
  EXPECT_EQ(lent({"a"}), 0u);
  host.acts.clear();
  ASSERT_TRUE(leases[0].set(Trust{true}));
  EXPECT_EQ(acts_before, 0u);
  const ChangedVf trust{FakeHost::pf, 0, FakeHost::vf(0), {.trust = before.trust}};
  EXPECT_THAT(kept, ElementsAre(trust));
  host.refuse("vf 0 MAC", "Operation not supported");
  EXPECT_FALSE(leases[0].set(Mac{2, 0, 0, 0, 0, 1}));
  EXPECT_THAT(kept, ElementsAre(trust));
  ASSERT_TRUE(leases[0].set(Mac{2, 0, 0, 0, 0, 1}));
  ASSERT_TRUE(leases[0].set(Mac{2, 0, 0, 0, 0, 2}));
  const ChangedVf both{
      FakeHost::pf, 0, FakeHost::vf(0), {.mac = before.mac, .trust = before.trust}};
  EXPECT_THAT(kept, ElementsAre(both));
  leases.clear();
  EXPECT_THAT(kept, IsEmpty());
  pool.keep_by([](const auto&) { return base::fail("the disk is full"); });
  EXPECT_EQ(lent({"b"}), 0u);
  EXPECT_TRUE(leases[0].set(Trust{true}));
  EXPECT_THAT(warnings, ElementsAre("the disk is full"));
}

TEST_F(VfPoolTest, WhatADeadPoolChangedIsRestored) {
  const auto before = host.values(0);
  for (unsigned vf = 0; vf < 3; ++vf) {
    ASSERT_TRUE(host.set("eth7", vf, Mac{2, 0, 0, 0, 0, 1}));
    ASSERT_TRUE(host.set("eth7", vf, Trust{true}));
  }
  host.hold(1, 4711, "qemu");
  host.acts.clear();
  const VfValues its{.mac = before.mac, .trust = before.trust};
  pool.restore({{FakeHost::pf, 0, FakeHost::vf(0), its},
                {FakeHost::pf, 1, FakeHost::vf(1), its},
                {FakeHost::pf, 2, FakeHost::vf(3), its},    // another one is in its place
                {FakeHost::pf, 7, FakeHost::vf(7), its}});  // gone
  EXPECT_THAT(host.acts, ElementsAre("vf 0 MAC 00:00:00:00:00:00", "vf 0 trust off"));
  EXPECT_EQ(host.values(0), before);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("VF 1: has settings of a daemon that was killed, "
                                              "and is held by process 4711 (qemu)")));
  // whoever is lent it then has it as it was
  EXPECT_EQ(lent({"a"}), 0u);
  ASSERT_TRUE(leases[0].set(Mac{2, 0, 0, 0, 0, 9}));
  leases.clear();
  EXPECT_EQ(host.values(0), before);
}

TEST_F(VfPoolTest, EqualValuesAreSkipped) {
  EXPECT_EQ(lent({"a"}), 0u);
  host.acts.clear();
  ASSERT_TRUE(leases[0].set(SpoofCheck{true}));
  EXPECT_THAT(host.acts, IsEmpty());
  leases.clear();
  EXPECT_THAT(host.acts, ElementsAre("reset 0000:01:10.0"));
}

TEST_F(VfPoolTest, ARefusalNamesFunctionValueAndReason) {
  EXPECT_EQ(lent({"a"}), 0u);
  host.refuse("vf 0 trust", "Operation not supported");
  const auto set = leases[0].set(Trust{true});
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().message, "PF 0000:01:00.0: VF 0: trust on: Operation not supported");
}

TEST_F(VfPoolTest, WhatCannotBeRestoredIsSaid) {
  EXPECT_EQ(lent({"a"}), 0u);
  ASSERT_TRUE(leases[0].set(Trust{true}));
  host.refuse("reset", "Inappropriate ioctl for device");
  host.refuse("vf 0 trust", "Device or resource busy");
  leases.clear();
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("VF 0: not reset when it was given back: Inappr"),
                                    HasSubstr("VF 0: trust off not restored: Device or")));
}

TEST_F(VfPoolTest, AFunctionThatWentMeanwhileIsForgotten) {
  EXPECT_EQ(lent({"a"}), 0u);
  ASSERT_TRUE(host.set_vf_count(FakeHost::pf, 0));
  EXPECT_FALSE(leases[0].set(Trust{true}));
  host.acts.clear();
  leases.clear();
  EXPECT_THAT(host.acts, IsEmpty());
  EXPECT_THAT(warnings, IsEmpty());
  EXPECT_THAT(pool.lease({"b"}).error().message, HasSubstr("has no VFs"));
}

TEST(VfPool, BindsWhatHasNoDriverYet) {
  FakeHost host{1};
  VfPool pool{host.sysfs(), host, [](const std::string&) {}};
  EXPECT_THAT(pool.lease({"a"}).error().message, HasSubstr("there is no [[pf]]"));
  EXPECT_THAT(pool.lease({"a", FakeHost::pf}).error().message, HasSubstr("add one"));
  pool.manage(FakeHost::pf);
  host.refuse("bind", "there is no driver vfio-pci in the kernel");
  EXPECT_THAT(pool.lease({"a"}).error().message, HasSubstr("there is no driver vfio-pci"));
  const auto lease = pool.lease({"a"});
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->function().driver, "vfio-pci");
  EXPECT_EQ(host.driver(0), "vfio-pci");
}

}  // namespace
}  // namespace millrace::sriov

// Functions that guests drive themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sriov/testing/pool_test.hpp"

namespace millrace::sriov {
namespace {

using ::testing::ElementsAre;
using testing::FakeHost;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Mac mac{2, 0, 0, 0, 0, 1};

class VfGuests : public testing::PoolTest {
 protected:
  VfGuests() {
    pool.keep_by([this](const std::vector<ChangedVf>& changed) -> base::Result<void> {
      kept = changed;
      return {};
    });
  }
  // The address; the line where none is lent.
  static std::string said(const base::Result<VirtualFunction>& lent) {
    return lent ? format(lent->address) : lent.error().message;
  }
  // The line; empty: it is back.
  std::string give_back(const std::string& name) {
    const auto lease = pool.take_from_guest(name);
    return lease ? "" : lease.error().message;
  }

  const VfGuest web0{"web0", {.mac = mac, .vlan = Vlan{10, 0, false}}};
  std::vector<ChangedVf> kept;
};

TEST_F(VfGuests, HaveAFunctionThatIsBoundSetAndReadBack) {
  EXPECT_EQ(said(pool.lend_to_guest(web0, {.physical = FakeHost::pf, .node = 1})),
            format(FakeHost::vf(1)));
  EXPECT_EQ(pool.holder_of(FakeHost::pf, 1), "guest web0");
  EXPECT_EQ(host.values(1).mac, mac);
  EXPECT_EQ(host.values(1).vlan, web0.values.vlan);
  EXPECT_EQ(lent({.holder = "uplink wan0", .node = 1}), 3u);  // each is lent once
  const VfValues before{.mac = Mac{}, .vlan = Vlan{}};
  EXPECT_THAT(kept, ElementsAre(ChangedVf{FakeHost::pf, 1, FakeHost::vf(1), before, web0}));
  EXPECT_THAT(said(pool.lend_to_guest(web0, {})), HasSubstr("guest web0 has PF 0000:01:00.0: VF 1 ("
                                                            "0000:01:10.2) already; give that"));
}

TEST_F(VfGuests, GiveItBackResetWithTheValuesItHad) {
  const auto before = host.values(0);
  ASSERT_TRUE(pool.lend_to_guest(web0, {}));
  host.acts.clear();
  EXPECT_EQ(give_back("web0"), "");
  EXPECT_THAT(host.acts,
              ElementsAre("reset 0000:01:10.0", "vf 0 no VLAN", "vf 0 MAC 00:00:00:00:00:00"));
  EXPECT_EQ(host.values(0), before);
  EXPECT_THAT(kept, IsEmpty());
  EXPECT_EQ(pool.leased(), 0u);
  EXPECT_EQ(give_back("web0"), "there is no function of a guest web0");
}

TEST_F(VfGuests, GiveNothingBackThatSomebodyHasOpen) {
  ASSERT_TRUE(pool.lend_to_guest(web0, {}));
  host.acts.clear();
  host.hold(0, 4711, "millrace-vmm");
  EXPECT_EQ(give_back("web0"),
            "PF 0000:01:00.0: VF 0 (0000:01:10.0) of guest web0 is held by process 4711 "
            "(millrace-vmm); end it first");
  host.let_go(4711);
  host.hold_unseen(0);
  EXPECT_THAT(give_back("web0"), HasSubstr("is held by a process that cannot be seen from here: "));
  EXPECT_EQ(pool.holder_of(FakeHost::pf, 0), "guest web0");
  EXPECT_THAT(host.acts, IsEmpty());
  EXPECT_EQ(kept.size(), 1u);
}

TEST_F(VfGuests, AreLentNothingWhereAValueIsRefused) {
  const auto before = host.values(0);
  host.refuse("vf 0 MAC", "Operation not supported");
  EXPECT_EQ(said(pool.lend_to_guest(web0, {})),
            "PF 0000:01:00.0: VF 0: MAC 02:00:00:00:00:01: Operation not supported");
  host.forgets_rates = true;
  EXPECT_EQ(said(pool.lend_to_guest({"web0", {.rate = Rate{0, 100}}}, {})),
            "PF 0000:01:00.0: VF 0: rate 0 to 100 Mbit/s was set, and the driver says rate 0 to 0 "
            "Mbit/s");
  ASSERT_TRUE(host.set("eth7", 2, mac));
  EXPECT_EQ(said(pool.lend_to_guest(web0, {})),
            "MAC 02:00:00:00:00:01 is the one of PF 0000:01:00.0: VF 2 already; give each its own");
  pool.keep_by([](const auto&) { return base::fail("the disk is full"); });
  EXPECT_EQ(said(pool.lend_to_guest({"web0", {}}, {})), "the disk is full");
  EXPECT_EQ(pool.leased(), 0u);
  EXPECT_EQ(host.values(0), before);
}

TEST_F(VfGuests, KeepWhatTheyHaveWhenThePoolEnds) {
  ASSERT_TRUE(pool.lend_to_guest(web0, {}));
  const auto values = host.values(0);
  host.acts.clear();
  host.hold(0, 4711, "millrace-vmm");
  {
    VfPool next{host.sysfs(), host, [this](const std::string& line) { warnings.push_back(line); }};
    next.manage(FakeHost::pf);
    next.restore(kept);
    EXPECT_EQ(next.holder_of(FakeHost::pf, 0), "guest web0");
    EXPECT_EQ(take(next.lease({.holder = "uplink wan0"})), 1u);
    leases.clear();
    next.forget_lost_guests();
    EXPECT_TRUE(next.has_guests(FakeHost::pf));
  }
  EXPECT_THAT(host.acts, ElementsAre("reset 0000:01:10.2"));  // the uplink's
  EXPECT_EQ(host.values(0), values);
  host.let_go(4711);
  VfPool last{host.sysfs(), host, [this](const std::string& line) { warnings.push_back(line); }};
  last.restore(kept);
  EXPECT_TRUE(last.take_from_guest("web0"));
  EXPECT_EQ(host.values(0).mac, Mac{});
  EXPECT_THAT(warnings, IsEmpty());
}

TEST_F(VfGuests, LoseWhatIsNotThereAnyMore) {
  ASSERT_TRUE(pool.lend_to_guest(web0, {}));
  ASSERT_TRUE(pool.lend_to_guest({"web1", {}}, {}));
  EXPECT_EQ(kept.size(), 2u);
  ASSERT_TRUE(host.set_vf_count(FakeHost::pf, 0));
  EXPECT_EQ(give_back("web1"), "");
  pool.forget_lost_guests();
  EXPECT_THAT(warnings, ElementsAre("PF 0000:01:00.0: VF 0 (0000:01:10.0) of guest web0 is gone: "
                                    "the guest has none any more"));
  EXPECT_FALSE(pool.has_guests(FakeHost::pf));
  EXPECT_THAT(kept, IsEmpty());
}

TEST_F(VfGuests, StandInForWhatTheConfigurationSaysOfTheirFunction) {
  ASSERT_TRUE(pool.lend_to_guest(web0, {}));
  PfWish wish;
  wish.address = FakeHost::pf;
  wish.vfs = 4;
  wish.functions = {{.index = 0, .values = {.mac = Mac{2, 0, 0, 0, 0, 9}, .trust = Trust{true}}},
                    {.index = 1, .values = {.trust = Trust{true}}}};
  const auto with = pool.with_guests(wish).functions;
  EXPECT_EQ(with[0].values, (VfValues{.mac = mac, .vlan = web0.values.vlan, .trust = Trust{true}}));
  EXPECT_EQ(with[1].values, wish.functions[1].values);
  const auto without = pool.without_guests(wish).functions;
  EXPECT_EQ(without[0].values, VfValues{});
  EXPECT_EQ(without[1].values, wish.functions[1].values);
  wish.functions.clear();
  EXPECT_EQ(pool.with_guests(wish).functions.size(), 1u);
  wish.vfs = 0;
  EXPECT_TRUE(pool.with_guests(wish).functions.empty());
}

}  // namespace
}  // namespace millrace::sriov

// Over a host in a folder, whose functions with odd numbers are on node 1.
#include "daemon/uplink_lease.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sriov/testing/pool_test.hpp"

namespace millrace::daemon {
namespace {

using sriov::testing::FakeHost;
using ::testing::Contains;

class UplinkLease : public sriov::testing::PoolTest {
 protected:
  static UplinkEntry entry(const std::string& name) {
    UplinkEntry out;
    out.uplink.name = name;
    out.pf = FakeHost::pf;
    return out;
  }
  unsigned lent(UplinkEntry& entry, int node) { return take(lease_for(entry, pool, node)); }
};

TEST_F(UplinkLease, IsNearTheReactor) {
  auto first = entry("first"), second = entry("second"), third = entry("third");
  EXPECT_EQ(lent(first, 1), 1u);
  EXPECT_EQ(lent(second, 0), 0u);
  EXPECT_EQ(lent(third, base::any_node), 2u);
  EXPECT_EQ(pool.holder_of(FakeHost::pf, 1), "uplink first");
  EXPECT_EQ(first.uplink.device, sriov::format(FakeHost::vf(1)));
  EXPECT_TRUE(first.uplink.pci);
}

TEST_F(UplinkLease, OneThatWasLostIsReplacedByAnother) {
  auto uplink = entry("wan0");
  uplink.uplink.mac = sriov::Mac{2, 0, 0, 0, 0, 1};
  EXPECT_EQ(lent(uplink, 1), 1u);
  leases.clear();
  EXPECT_EQ(lent(uplink, 1), 3u);  // near
  leases.clear();
  EXPECT_EQ(lent(uplink, 1), 1u);
  EXPECT_THAT(host.acts, Contains("vf 3 MAC 02:00:00:00:00:01"));
}

}  // namespace
}  // namespace millrace::daemon

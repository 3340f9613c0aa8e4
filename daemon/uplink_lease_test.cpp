// Over a host in a folder, whose functions with odd numbers are on node 1.
#include "daemon/uplink_lease.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sriov/testing/fake_host.hpp"

namespace millrace::daemon {
namespace {

using sriov::testing::FakeHost;
using ::testing::Contains;

class UplinkLease : public ::testing::Test {
 protected:
  UplinkLease() { pool.manage(FakeHost::pf); }
  static UplinkEntry entry(const std::string& name) {
    UplinkEntry out;
    out.uplink.name = name;
    out.pf = FakeHost::pf;
    return out;
  }
  unsigned lent(UplinkEntry& entry, int node) {
    auto lease = lease_for(entry, pool, node);
    if (!lease) {
      ADD_FAILURE() << lease.error().message;
      return 99;
    }
    leases.push_back(*std::move(lease));
    return leases.back().function().index;
  }

  FakeHost host{4, "vfio-pci"};
  sriov::VfPool pool{host.sysfs(), host, [](const std::string&) {}};
  std::vector<sriov::VfLease> leases;
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

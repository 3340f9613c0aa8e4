// PoolTest: what tests of a pool over a FakeHost begin with: four functions of vfio-pci, of which
// the odd ones are on node 1, and the leases that a test took.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "sriov/testing/fake_host.hpp"
#include "sriov/vf_pool.hpp"

namespace millrace::sriov::testing {

class PoolTest : public ::testing::Test {
 protected:
  PoolTest() { pool.manage(FakeHost::pf); }
  // Keeps the lease and answers its function's index; 99 where there is none, which fails the test.
  unsigned take(base::Result<VfLease> lease) {
    if (!lease) {
      ADD_FAILURE() << lease.error().message;
      return 99;
    }
    leases.push_back(*std::move(lease));
    return leases.back().function().index;
  }
  unsigned lent(const VfRequest& request) { return take(pool.lease(request)); }

  FakeHost host{4, "vfio-pci"};
  std::vector<std::string> warnings;
  VfPool pool{host.sysfs(), host, [this](const std::string& line) { warnings.push_back(line); }};
  std::vector<VfLease> leases;
};

}  // namespace millrace::sriov::testing

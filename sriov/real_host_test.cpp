// The pool and the applier on a real kernel: run by tests/system/test_sriov.py, which says on which
// physical function (MILLRACE_SRIOV_PF) and has it without functions before and after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "sriov/applier.hpp"
#include "sriov/system.hpp"
#include "sriov/vf_pool.hpp"

namespace millrace::sriov {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RealHost : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* const pci = std::getenv("MILLRACE_SRIOV_PF");
    if (pci == nullptr) GTEST_SKIP() << "only where MILLRACE_SRIOV_PF names a NIC to try it on";
    const auto address = parse_pci_address(pci);
    ASSERT_TRUE(address) << pci;
    pf = *address;
    make(2);
  }
  void TearDown() override {
    if (!IsSkipped()) make(0);
  }
  void make(unsigned count) {
    PfWish wish;
    wish.address = pf;
    wish.vfs = count;
    const auto done = applier.apply(wish);
    ASSERT_TRUE(done) << done.error().message;
  }

  PciAddress pf;
  Sysfs sysfs;
  System system{sysfs};
  Applier applier{sysfs, system, {}};
  std::vector<std::string> warnings;
};

TEST_F(RealHost, FunctionsAreLentAndComeBackAsTheyWere) {
  VfPool pool{sysfs, system, [this](const std::string& line) { warnings.push_back(line); }};
  pool.manage(pf);
  auto first = pool.lease({"first"});
  ASSERT_TRUE(first) << first.error().message;
  const auto function = first->function();
  EXPECT_EQ(sysfs.link_name(sysfs.folder(function.address) + "driver"), "vfio-pci");
  const auto before = first->values();
  ASSERT_TRUE(before) << before.error().message;

  // the holder changes what it needs, and opens it
  ASSERT_TRUE(first->set(Trust{true}));
  ASSERT_TRUE(first->set(SpoofCheck{false}));
  ASSERT_TRUE(first->set(Mac{0x52, 0x54, 0, 0, 0, 0x42}));
  EXPECT_EQ(first->values()->mac, (Mac{0x52, 0x54, 0, 0, 0, 0x42}));
  {
    const auto open = system.claim_group(*function.group);
    ASSERT_TRUE(open) << open.error().message;
    EXPECT_FALSE(system.claim_group(*function.group));  // one at a time
    PfWish fewer;
    fewer.address = pf;
    fewer.vfs = 1;
    EXPECT_THAT(applier.apply(fewer).error().message, HasSubstr("held by process"));
  }
  {
    const auto second = pool.lease({"second"});
    ASSERT_TRUE(second) << second.error().message;
    EXPECT_NE(second->function().index, function.index);
    EXPECT_THAT(pool.lease({"third"}).error().message, HasSubstr("is lent to first"));
  }
  first = pool.lease({"again"});  // the other one; the first goes back
  ASSERT_TRUE(first);
  EXPECT_NE(first->function().index, function.index);
  const auto after = applier.read(pf);
  ASSERT_TRUE(after);
  EXPECT_EQ(after->link->functions[function.index], *before);
  EXPECT_THAT(warnings, IsEmpty());
}

}  // namespace
}  // namespace millrace::sriov

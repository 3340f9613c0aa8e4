#include "sriov/functions.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sriov/testing/fake_host.hpp"

namespace millrace::sriov {
namespace {

using testing::FakeHost;
using ::testing::HasSubstr;

TEST(PciAddress, IsReadAsPeopleWriteIt) {
  EXPECT_EQ(parse_pci_address("0000:01:10.3"), (PciAddress{0, 1, 16, 3}));
  EXPECT_EQ(parse_pci_address("AF:1f.7"), (PciAddress{0, 0xaf, 31, 7}));
  EXPECT_EQ(parse_pci_address("10000:01:00.0"), std::nullopt);  // a domain has 4 digits, or 8
  EXPECT_EQ(parse_pci_address("00010000:01:00.0"), (PciAddress{0x10000, 1, 0, 0}));
  for (const char* wrong : {"", "01:10", "01:10.", "01:10.8", "01:20.0", "0000:01:10.0 ", "01.10:0",
                            "0000:1:10.0", "0000:01:1.0", "eth0", "0000:0g:00.0", "+000:01:00.0"}) {
    EXPECT_EQ(parse_pci_address(wrong), std::nullopt) << wrong;
  }
  EXPECT_EQ(format({0, 1, 16, 3}), "0000:01:10.3");
  EXPECT_EQ(format({0x10000, 0xaf, 0, 0}), "10000:af:00.0");
}

TEST(Functions, AreReadFromSysfs) {
  FakeHost host{3, "vfio-pci"};
  host.netdev_up(2, "eth9");
  const auto pf = read_physical_function(host.sysfs(), FakeHost::pf);
  ASSERT_TRUE(pf) << pf.error().message;
  EXPECT_EQ(pf->vfs_max, FakeHost::vfs_max);
  EXPECT_TRUE(pf->autoprobe);
  EXPECT_EQ(pf->driver, "nicdriver");
  EXPECT_EQ(pf->netdev, "eth7");
  EXPECT_EQ(pf->node, base::any_node);
  ASSERT_EQ(pf->functions.size(), 3u);
  const auto& vf = pf->functions[1];
  EXPECT_EQ(vf.index, 1u);
  EXPECT_EQ(vf.address, FakeHost::vf(1));
  EXPECT_EQ(vf.driver, "vfio-pci");
  EXPECT_EQ(vf.group, FakeHost::group(1));
  EXPECT_EQ(vf.node, 1);
  EXPECT_EQ(vf.netdev, "");
  EXPECT_FALSE(vf.netdev_up);
  EXPECT_EQ(pf->functions[2].netdev, "eth9");
  EXPECT_TRUE(pf->functions[2].netdev_up);
}

TEST(Functions, WhatIsNoneIsSaid) {
  FakeHost host{1};
  const auto absent = read_physical_function(host.sysfs(), {0, 2, 0, 0});
  EXPECT_THAT(absent.error().message, HasSubstr("there is no PCI function 0000:02:00.0"));
  const auto virtual_one = read_physical_function(host.sysfs(), FakeHost::vf(0));
  EXPECT_THAT(virtual_one.error().message, HasSubstr("has no virtual functions to give"));
}

TEST(Functions, AFunctionThatIsCountedAndNotThereIsAnError) {
  FakeHost host{2};
  host.file("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "3\n");
  const auto pf = read_physical_function(host.sysfs(), FakeHost::pf);
  EXPECT_THAT(pf.error().message, HasSubstr("counts 3 VFs, and VF 2 is not there"));
}

TEST(Functions, HoldersAreFoundInProc) {
  FakeHost host{3};
  host.hold(1, 4711, "qemu-system-x86");
  host.link_to("proc/4711/fd/9", "/dev/vfio/" + std::to_string(FakeHost::group(1)));  // twice
  host.hold(2, 12, "vmm");
  host.link_to("proc/13/fd/0", "/dev/null");
  const auto holders = vfio_holders(host.sysfs());
  ASSERT_EQ(holders.size(), 2u);
  EXPECT_EQ(holders.at(FakeHost::group(1)), (std::vector<Holder>{{4711, "qemu-system-x86"}}));
  EXPECT_EQ(holders.at(FakeHost::group(2)), (std::vector<Holder>{{12, "vmm"}}));
}

}  // namespace
}  // namespace millrace::sriov

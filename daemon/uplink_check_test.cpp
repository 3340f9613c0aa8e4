// Folders that look as the kernel's do.
#include "daemon/uplink_check.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace millrace::daemon {
namespace {

namespace fs = std::filesystem;

constexpr const char* address = "0000:01:00.0";

class UplinkCheck : public ::testing::Test {
 protected:
  UplinkCheck() {
    std::string folder = "/tmp/millrace-uplink-XXXXXX";
    root_ = ::mkdtemp(folder.data());
    host_ = sriov::Sysfs{root_.string()};
  }
  ~UplinkCheck() override { fs::remove_all(root_); }

  void write(const fs::path& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream{root_ / path} << text;
  }
  void link(const fs::path& path, const fs::path& target) const {
    fs::create_directories((root_ / path).parent_path());
    fs::create_symlink(target, root_ / path);
  }
  void function(const std::string& name, const std::string& driver,
                const std::string& group) const {
    const auto at = fs::path{"sys/bus/pci/devices"} / name;
    write(at / "class", "0x020000\n");
    if (!driver.empty()) link(at / "driver", root_ / "sys/bus/pci/drivers" / driver);
    if (group.empty()) return;
    const auto its = fs::path{"sys/kernel/iommu_groups"} / group;
    link(at / "iommu_group", root_ / its);
    link(its / "devices" / name, root_ / at);
    write("dev/vfio/" + group, "");
  }
  [[nodiscard]] std::string refused(const std::vector<std::string>& others = {}) {
    const auto result = check_pci_uplink(address, others, 1, host_);
    return result ? "" : result.error().message;
  }

  fs::path root_;
  sriov::Sysfs host_;
};

TEST_F(UplinkCheck, TakesAFunctionThatVfioDrives) {
  function(address, "vfio-pci", "7");
  EXPECT_EQ(refused(), "");
  const auto group = check_pci_function(address, host_);
  ASSERT_TRUE(group);
  EXPECT_EQ(*group, 7u);
}

TEST_F(UplinkCheck, NamesAFunctionThatIsNotThere) {
  EXPECT_EQ(refused(), "there is no PCI function 0000:01:00.0; lspci -D lists them");
}

TEST_F(UplinkCheck, NamesTheMissingIommu) {
  function(address, "vfio-pci", "");
  EXPECT_NE(refused().find("has no IOMMU group: the IOMMU is off"), std::string::npos);
}

TEST_F(UplinkCheck, SaysWhatToTypeForAnotherDriver) {
  function(address, "igb", "7");
  EXPECT_EQ(refused(),
            "the PCI function 0000:01:00.0 is driven by igb; give it to vfio-pci: modprobe "
            "vfio-pci; echo vfio-pci >/sys/bus/pci/devices/0000:01:00.0/driver_override; echo "
            "0000:01:00.0 >/sys/bus/pci/devices/0000:01:00.0/driver/unbind; echo 0000:01:00.0 "
            ">/sys/bus/pci/drivers_probe");
}

TEST_F(UplinkCheck, SaysWhatToTypeForNoDriver) {
  function(address, "", "7");
  EXPECT_EQ(refused(),
            "the PCI function 0000:01:00.0 has no driver; give it to vfio-pci: modprobe vfio-pci; "
            "echo vfio-pci >/sys/bus/pci/devices/0000:01:00.0/driver_override; echo 0000:01:00.0 "
            ">/sys/bus/pci/drivers_probe");
}

TEST_F(UplinkCheck, NamesANeighbourThatKeepsTheGroup) {
  function(address, "vfio-pci", "7");
  function("0000:00:1c.0", "pcieport", "7");
  function("0000:01:00.1", "", "7");
  EXPECT_EQ(refused(), "");
  function("0000:01:00.2", "nvme", "7");
  EXPECT_NE(refused().find("shares IOMMU group 7 with 0000:01:00.2, which is driven by nvme; give "
                           "that to vfio-pci too: modprobe"),
            std::string::npos)
      << refused();
}

TEST_F(UplinkCheck, NamesAGroupThatCannotBeOpened) {
  function(address, "vfio-pci", "7");
  fs::remove(root_ / "dev/vfio/7");
  EXPECT_EQ(refused(), "IOMMU group 7 of the PCI function 0000:01:00.0 cannot be opened: " +
                           (root_ / "dev/vfio/7").string() + ": No such file or directory");
}

TEST_F(UplinkCheck, NamesWhoHoldsTheGroup) {
  function(address, "vfio-pci", "7");
  write("proc/4711/comm", "qemu\n");
  link("proc/4711/fd/9", "/dev/vfio/8");  // another group
  EXPECT_EQ(refused(), "");
  link("proc/4711/fd/10", "/dev/vfio/7");
  EXPECT_EQ(refused(),
            "IOMMU group 7 of the PCI function 0000:01:00.0 is held by process 4711 (qemu); end it "
            "first");
}

TEST_F(UplinkCheck, KnowsAGroupThatItHasItself) {
  function(address, "vfio-pci", "7");
  link("proc/" + std::to_string(::getpid()) + "/fd/10", "/dev/vfio/7");
  EXPECT_NE(refused().find("is still this daemon's"), std::string::npos) << refused();
}

TEST_F(UplinkCheck, KnowsTheUplinksThatAreThere) {
  function(address, "vfio-pci", "7");
  function("0000:01:00.1", "vfio-pci", "7");
  EXPECT_EQ(refused({address}), "the PCI function 0000:01:00.0 is an uplink already");
  // One group, opened by this process already: not opened again.
  fs::remove(root_ / "dev/vfio/7");
  EXPECT_EQ(refused({"0000:01:00.1"}), "");
}

TEST_F(UplinkCheck, KnowsWhoSharesAGroup) {
  function(address, "vfio-pci", "7");
  function("0000:01:00.1", "vfio-pci", "7");
  function("0000:02:00.0", "vfio-pci", "8");
  EXPECT_TRUE(check_alone_in_group(address, {}, host_));
  EXPECT_TRUE(check_alone_in_group(address, {"0000:02:00.0"}, host_));
  const auto shared = check_alone_in_group(address, {"0000:02:00.0", "0000:01:00.1"}, host_);
  ASSERT_FALSE(shared);
  EXPECT_EQ(shared.error().message,
            "the PCI function 0000:01:00.0 shares IOMMU group 7 with the uplink 0000:01:00.1, and "
            "zero_copy needs the group for one uplink alone; leave zero_copy out of both");
}

TEST_F(UplinkCheck, KnowsTheLinkOfThePhysicalFunction) {
  const auto at = fs::path{"sys/bus/pci/devices"} / address;
  EXPECT_FALSE(physical_has_link(address, host_));  // there is none
  write("pf/net/eth0/carrier", "0\n");
  link(at / "physfn", root_ / "pf");
  EXPECT_FALSE(physical_has_link(address, host_));
  write("pf/net/eth0/carrier", "1\n");
  EXPECT_TRUE(physical_has_link(address, host_));
}

}  // namespace
}  // namespace millrace::daemon

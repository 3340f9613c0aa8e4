// Folders that look as the kernel's do.
#include "daemon/uplink_check.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace millrace::daemon {
namespace {

namespace fs = std::filesystem;

constexpr const char* address = "0000:01:00.0";

class UplinkCheck : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = "/tmp/millrace-uplink-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    root_ = folder;
    places_ = {root_ / "functions", root_ / "vfio"};
    fs::create_directories(places_.functions);
    fs::create_directories(places_.groups);
  }
  void TearDown() override { fs::remove_all(root_); }

  void function(const std::string& name, const std::string& driver, const std::string& group) {
    const auto at = places_.functions / name;
    fs::create_directories(at);
    if (!driver.empty()) fs::create_symlink(root_ / "drivers" / driver, at / "driver");
    if (group.empty()) return;
    const auto its = root_ / "iommu_groups" / group;
    fs::create_directories(its / "devices");
    fs::create_symlink(its, at / "iommu_group");
    fs::create_symlink(at, its / "devices" / name);
    std::ofstream{places_.groups / group} << "";
  }
  [[nodiscard]] std::string refused(const std::vector<std::string>& others = {}) {
    const auto result = check_pci_uplink(address, others, 1, places_);
    return result ? "" : result.error().message;
  }

  fs::path root_;
  PciPlaces places_;
};

TEST_F(UplinkCheck, TakesAFunctionThatVfioDrives) {
  function(address, "vfio-pci", "7");
  EXPECT_EQ(refused(), "");
  const auto group = check_pci_function(address, places_);
  ASSERT_TRUE(group);
  EXPECT_EQ(*group, "7");
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
  fs::remove(places_.groups / "7");
  EXPECT_EQ(refused(), "IOMMU group 7 of the PCI function 0000:01:00.0: cannot open " +
                           (places_.groups / "7").string() + ": No such file or directory");
}

TEST_F(UplinkCheck, KnowsTheUplinksThatAreThere) {
  function(address, "vfio-pci", "7");
  function("0000:01:00.1", "vfio-pci", "7");
  EXPECT_EQ(refused({address}), "the PCI function 0000:01:00.0 is an uplink already");
  // One group, opened by this process already: not opened again.
  fs::remove(places_.groups / "7");
  EXPECT_EQ(refused({"0000:01:00.1"}), "");
}

}  // namespace
}  // namespace millrace::daemon

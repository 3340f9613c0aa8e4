#include "daemon/ctl/check_host.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace millrace::ctl {
namespace {

namespace fs = std::filesystem;
using Level = Finding::Level;

// A host whose files are in a folder; at first one on which nothing is missing.
class CheckHostTest : public ::testing::Test {
 protected:
  CheckHostTest() {
    std::string name = "/tmp/mill-host-XXXXXX";
    root = ::mkdtemp(name.data());
    write("proc/interrupts", "  16:  1  0  IR-PCI-MSI 512-edge  eth0\n");
    write("proc/self/limits", "Max locked memory         unlimited            unlimited   bytes\n");
    write("proc/meminfo",
          "HugePages_Total:     128\nHugePages_Free:      100\nHugepagesize:       2048 kB\n");
    write("dev/vfio/vfio", "");
    write("dev/vfio/7", "");
    write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
    write("sys/module/vfio_pci/refcnt", "0\n");
    add("0000:01:00.0", "igb", "6", "0x020000");
    write("sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs", "7\n");
    write("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "2\n");
    add("0000:01:10.0", "vfio-pci", "7", "0x020000");
    add("0000:02:00.0", "nvme", "8", "0x010802");
  }
  ~CheckHostTest() override { fs::remove_all(root); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root / path).parent_path());
    std::ofstream{root / path} << text;
  }

  void add(const std::string& address, const std::string& driver, const std::string& group,
           const std::string& kind) const {
    const auto device = root / "sys/bus/pci/devices" / address;
    write("sys/bus/pci/devices/" + address + "/class", kind + "\n");
    if (!driver.empty()) fs::create_symlink("../drivers/" + driver, device / "driver");
    const auto folder = root / "sys/kernel/iommu_groups" / group;
    fs::create_directories(folder / "devices");
    fs::create_symlink(folder, device / "iommu_group");
    fs::create_symlink(device, folder / "devices" / address);
  }

  [[nodiscard]] Finding find(const std::string& what) const {
    const auto all = check_host(root);
    const auto found = std::ranges::find(all, what, &Finding::what);
    return found == all.end() ? Finding{Level::ok, "", "nothing is said"} : *found;
  }

  void expect(const std::string& what, Level level, const std::string& part) const {
    const auto finding = find(what);
    EXPECT_EQ(finding.level, level) << what << ": " << finding.text;
    EXPECT_NE(finding.text.find(part), std::string::npos) << what << ": " << finding.text;
    EXPECT_EQ(finding.text.find('\n'), std::string::npos);
  }

  fs::path root;
};

// For its life the process is no user whom permissions do not hold for.
class Ordinary {
 public:
  Ordinary() { become(65534); }
  ~Ordinary() { become(0); }

 private:
  void become(uid_t user) const {
    if (was_root_) {
      EXPECT_EQ(::seteuid(user), 0);
    }
  }
  bool was_root_ = ::geteuid() == 0;
};

TEST_F(CheckHostTest, HasNothingToSayOfAGoodHost) {
  for (const auto& finding : check_host(root)) {
    EXPECT_EQ(finding.level, Level::ok) << finding.what << ": " << finding.text;
  }
  expect("IOMMU", Level::ok, "3 groups");
  expect("huge pages", Level::ok, "100 of 128 of 2.00 MiB");
  expect("0000:01:00.0", Level::ok, "7 virtual functions at most, 2 made");
  expect("0000:01:10.0", Level::ok, "ready");
  expect("0000:02:00.0", Level::ok, "nothing is said");  // no network function
}

TEST_F(CheckHostTest, MissesTheIommu) {
  fs::remove_all(root / "sys/kernel/iommu_groups");
  fs::remove(root / "sys/bus/pci/devices/0000:01:10.0/iommu_group");
  expect("IOMMU", Level::problem, "intel_iommu=on");
  expect("0000:01:10.0", Level::problem, "has no IOMMU group");
  expect("interrupts", Level::ok, "nothing is said");
}

TEST_F(CheckHostTest, MissesInterruptRemapping) {
  write("proc/interrupts", "  16:  1  0  PCI-MSI 512-edge  eth0\n");
  expect("interrupts", Level::problem, "intremap=off");
  write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
  expect("interrupts", Level::note, "allow_unsafe_interrupts");
}

TEST_F(CheckHostTest, MissesModules) {
  fs::remove_all(root / "sys/module/vfio_pci");
  expect("VFIO", Level::problem, "vfio_pci is not loaded: modprobe");
  write("sys/module/vfio_pci/refcnt", "0\n");
  fs::remove(root / "dev/vfio/vfio");
  expect("VFIO", Level::problem, "/dev/vfio/vfio is not there");
}

TEST_F(CheckHostTest, FindsALimitOfLockedMemory) {
  write("proc/self/limits", "Max locked memory         8388608              8388608     bytes\n");
  expect("locked memory", Level::problem, "may lock 8.00 MiB");
  write("proc/self/limits", "Max locked memory         1073741824           8388608     bytes\n");
  expect("locked memory", Level::note, "LimitMEMLOCK=");
  write("proc/self/status", "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000004000\n");
  expect("locked memory", Level::ok, "is not limited");
  write("proc/self/status", "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000002000\n");
  expect("locked memory", Level::note, "LimitMEMLOCK=");
}

TEST_F(CheckHostTest, CountsHugePages) {
  write("proc/meminfo", "HugePages_Total:       0\nHugePages_Free:        0\n");
  expect("huge pages", Level::note, "vm.nr_hugepages");
}

TEST_F(CheckHostTest, NamesWhoSharesAGroup) {
  add("0000:01:10.2", "igbvf", "9", "0x020000");
  fs::create_symlink(root / "sys/bus/pci/devices/0000:01:10.2",
                     root / "sys/kernel/iommu_groups/7/devices/0000:01:10.2");
  expect("0000:01:10.0", Level::problem, "shares IOMMU group 7 with 0000:01:10.2");
  expect("0000:01:10.2", Level::note, "belongs to the driver igbvf: bind it to vfio-pci");
}

TEST_F(CheckHostTest, NamesWhoHoldsAGroup) {
  write("proc/4711/comm", "qemu\n");
  fs::create_directories(root / "proc/4711/fd");
  fs::create_symlink("/dev/vfio/7", root / "proc/4711/fd/9");
  expect("0000:01:10.0", Level::ok, "vfio-pci: in use by process 4711 (qemu)");
}

TEST_F(CheckHostTest, FindsAGroupThatThisUserMayNotOpen) {
  fs::permissions(root, fs::perms::all);
  const auto own = root / "dev/vfio/7", all = root / "dev/vfio/vfio";
  fs::permissions(own, fs::perms::owner_read);
  fs::permissions(all, fs::perms::all);
  {
    const Ordinary user;
    expect("0000:01:10.0", Level::note,
           "/dev/vfio/7 may not be opened by this user: chown " + std::to_string(::geteuid()) +
               " /dev/vfio/7");
    expect("VFIO", Level::ok, "is loaded");
  }
  expect("VFIO", Level::ok, "is loaded");
  fs::permissions(own, fs::perms::all);
  fs::permissions(all, fs::perms::owner_read);
  const Ordinary user;
  expect("0000:01:10.0", Level::ok, "ready");
  expect("VFIO", Level::problem, "/dev/vfio/vfio may not be opened by this user: chmod 666");
}

TEST_F(CheckHostTest, FindsAGroupWithoutItsFile) {
  fs::remove(root / "dev/vfio/7");
  expect("0000:01:10.0", Level::problem, "/dev/vfio/7 is not there");
}

}  // namespace
}  // namespace millrace::ctl

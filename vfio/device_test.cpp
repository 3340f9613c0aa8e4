#include "vfio/device.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "vfio/domain.hpp"
#include "vfio/host_function.hpp"
#include "vfio/testing/fake_kernel.hpp"

namespace millrace::vfio {
namespace {

namespace fs = std::filesystem;

constexpr auto address = "0000:01:10.0";

struct DeviceTest : ::testing::Test {
  DeviceTest() {
    function.address = address;
    function.regions[0].resize(0x4000);
    function.regions[3].resize(0x8000);
    function.sparse[3] = {{0, 0x1000}, {0x2000, 0x6000}};
    function.regions[region_config].resize(4096);
  }
  // With its group in a domain.
  Device opened() {
    auto domain_made = Domain::open(kernel);
    domain = std::make_unique<Domain>(*std::move(domain_made));
    auto group_made = Group::open(7, kernel);
    group = std::make_unique<Group>(*std::move(group_made));
    EXPECT_TRUE(domain->attach(*group));
    auto device = Device::open(*group, address, kernel);
    EXPECT_TRUE(device) << device.error().message;
    return *std::move(device);
  }

  testing::FakeKernel kernel;
  testing::FakeKernel::Function& function{kernel.groups[7].function};
  std::unique_ptr<Domain> domain;
  std::unique_ptr<Group> group;
};

TEST_F(DeviceTest, KnowsItsRegions) {
  const auto device = opened();
  EXPECT_EQ(device.region(0).size, 0x4000u);
  EXPECT_EQ(device.region(0).mappable, (std::vector<Area>{{0, 0x4000}}));
  EXPECT_EQ(device.region(1).size, 0u);
  EXPECT_EQ(device.region(3).mappable, (std::vector<Area>{{0, 0x1000}, {0x2000, 0x6000}}));
  EXPECT_TRUE(device.region(region_config).mappable.empty());
  EXPECT_EQ(device.region(1234).size, 0u);
}

TEST_F(DeviceTest, LeavesOutAreasThatNoRegionHolds) {
  function.sparse[3] = {
      {0x7000, 0x2000}, {0x800, 0x1000}, {~0ull - 0xfff, 0x1000}, {0x1000, 0x1000}};
  const auto device = opened();
  EXPECT_EQ(device.region(3).mappable, (std::vector<Area>{{0x1000, 0x1000}}));
}

TEST_F(DeviceTest, ReadsAndWritesInsideItsRegions) {
  const auto device = opened();
  std::array<std::byte, 4> data{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(device.write(0, 0x3ffc, data));
  EXPECT_EQ(function.regions[0][0x3fff], std::byte{4});
  std::array<std::byte, 4> back{};
  ASSERT_TRUE(device.read(0, 0x3ffc, back));
  EXPECT_EQ(back, data);
  EXPECT_FALSE(device.read(0, 0x3ffd, back));
  EXPECT_FALSE(device.write(0, 0x4000, data));
  EXPECT_FALSE(device.read(0, ~0ull, back));
  EXPECT_FALSE(device.read(1, 0, back));
  EXPECT_FALSE(device.read(99, 0, back));
  function.gone = true;
  EXPECT_FALSE(device.read(0, 0, back));
}

TEST_F(DeviceTest, MapsAreas) {
  const auto device = opened();
  const auto at = device.map(3, {0x2000, 0x6000});
  ASSERT_TRUE(at);
  EXPECT_EQ(*at, function.regions[3].data() + 0x2000);
  device.unmap(*at, {0x2000, 0x6000});
  EXPECT_EQ(kernel.mapped, 0);
}

TEST_F(DeviceTest, ResetsOnlyWhatCanBeReset) {
  {
    const auto device = opened();
    EXPECT_TRUE(device.reset());
    EXPECT_EQ(function.resets, 1u);
  }
  function.can_reset = false;
  kernel.groups[7].attached = false;
  const auto device = opened();
  EXPECT_FALSE(device.can_reset());
  const auto refused = device.reset();
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("no FLR"), std::string::npos);
  EXPECT_EQ(function.resets, 1u);
}

TEST_F(DeviceTest, SetsInterruptsAndSendsThemElsewhere) {
  const auto device = opened();
  EXPECT_EQ(device.vectors(Irq::msix), 3u);
  const std::array eventfds{10, 11, 12};
  ASSERT_TRUE(device.set_irqs(Irq::msix, eventfds));
  EXPECT_EQ(function.eventfds.at({2, 1}), 11);
  ASSERT_TRUE(device.set_irq(Irq::msix, 1, 21));
  EXPECT_EQ(function.eventfds.at({2, 1}), 21);
  EXPECT_EQ(function.eventfds.at({2, 2}), 12);
  EXPECT_FALSE(device.set_irq(Irq::msix, 3, 21));
  // Fewer than before: what is beyond is off.
  ASSERT_TRUE(device.set_irqs(Irq::msix, std::span{eventfds}.first(1)));
  EXPECT_EQ(function.eventfds.size(), 1u);
  const std::array<int, 4> many{1, 2, 3, 4};
  EXPECT_FALSE(device.set_irqs(Irq::msix, many));
  ASSERT_TRUE(device.set_irqs(Irq::request, std::span{eventfds}.first(1)));
  device.clear_irqs(Irq::msix);
  EXPECT_EQ(function.eventfds.size(), 1u);
  EXPECT_EQ(function.eventfds.at({4, 0}), 10);
  ASSERT_TRUE(device.unmask_intx());
  EXPECT_EQ(function.unmasks, 1u);
}

TEST_F(DeviceTest, IsOpenOnceAtATime) {
  {
    const auto device = opened();
    const auto second = Device::open(*group, address, kernel);
    ASSERT_FALSE(second);
    EXPECT_NE(second.error().message.find("in use"), std::string::npos);
  }
  EXPECT_TRUE(Device::open(*group, address, kernel));
  const auto other = Device::open(*group, "0000:01:10.2", kernel);
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message.find("vfio-pci"), std::string::npos);
}

// --- What the host says of a function ---

struct HostFunctionTest : ::testing::Test {
  HostFunctionTest() {
    std::string name = "/tmp/mill-function-XXXXXX";
    root = ::mkdtemp(name.data());
  }
  ~HostFunctionTest() override { fs::remove_all(root); }

  void add(const std::string& where, const std::string& driver, const std::string& group,
           bool bridge = false) const {
    const auto at = root / "sys/bus/pci/devices" / where;
    fs::create_directories(at);
    if (!driver.empty()) fs::create_symlink("../../bus/pci/drivers/" + driver, at / "driver");
    if (bridge) std::ofstream{at / "secondary_bus_number"} << "1\n";
    if (group.empty()) return;
    const auto members = root / "sys/kernel/iommu_groups" / group / "devices";
    fs::create_directories(members);
    fs::create_symlink(root / "sys/kernel/iommu_groups" / group, at / "iommu_group");
    fs::create_symlink(at, members / where);
  }

  fs::path root;
};

TEST_F(HostFunctionTest, HasAFormOfItsOwn) {
  EXPECT_TRUE(is_pci_address("0000:01:10.0"));
  EXPECT_TRUE(is_pci_address("abcd:ef:1f.7"));
  for (const auto* const wrong : {"", "01:10.0", "0000:01:10.8", "0000:01:10.0 ", "0000:0G:10.0",
                                  "0000-01:10.0", "../../../../x"}) {
    EXPECT_FALSE(is_pci_address(wrong)) << wrong;
  }
}

TEST_F(HostFunctionTest, SaysDriverGroupAndNeighbours) {
  add("0000:00:01.0", "pcieport", "3", true);
  add("0000:01:10.2", "igbvf", "3");
  add("0000:01:10.0", "vfio-pci", "3");
  const auto function = find_function("0000:01:10.0", root);
  ASSERT_TRUE(function);
  EXPECT_EQ(function->driver, "vfio-pci");
  EXPECT_EQ(function->group, 3u);
  EXPECT_EQ(function->group_members, (std::vector<std::string>{"0000:01:10.0", "0000:01:10.2"}));
  EXPECT_TRUE(check_ready(*function));
}

TEST_F(HostFunctionTest, SaysWhatIsMissing) {
  add("0000:01:10.0", "vfio-pci", "");
  add("0000:01:10.2", "igbvf", "3");
  add("0000:01:10.4", "", "4");
  const auto why = [this](const char* where) {
    const auto function = find_function(where, root);
    if (!function) return function.error().message;
    const auto ready = check_ready(*function);
    return ready ? std::string{"ready"} : ready.error().message;
  };
  EXPECT_NE(why("0000:01:10.0").find("intel_iommu=on"), std::string::npos);
  EXPECT_NE(why("0000:01:10.2").find("belongs to the driver igbvf"), std::string::npos);
  EXPECT_NE(why("0000:01:10.4").find("has no driver: bind it"), std::string::npos);
  EXPECT_NE(why("0000:01:10.6").find("there is no PCI function"), std::string::npos);
  EXPECT_NE(why("eth0").find("is no PCI address"), std::string::npos);
}

}  // namespace
}  // namespace millrace::vfio

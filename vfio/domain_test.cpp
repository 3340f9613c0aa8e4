#include "vfio/domain.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

#include "vfio/dma_map.hpp"
#include "vfio/group.hpp"
#include "vfio/plan.hpp"
#include "vfio/testing/fake_kernel.hpp"

namespace millrace::vfio {
namespace {

constexpr std::uint64_t gibibyte = 1ull << 30;

// Memory that nobody touches: the fake kernel looks at addresses alone.
const void* address(std::uint64_t value) {
  return reinterpret_cast<const void*>(value);
}

template <class T>
std::string error_of(const base::Result<T>& result) {
  return result ? "no error" : result.error().message;
}

struct DomainTest : ::testing::Test {
  DomainTest() {
    kernel.groups[7].function.address = "0000:01:10.0";
    kernel.groups[8].function.address = "0000:01:10.2";
  }
  Domain attached() {
    auto group = Group::open(7, kernel);
    EXPECT_TRUE(group) << error_of(group);
    auto domain = Domain::open(kernel);
    EXPECT_TRUE(domain) << error_of(domain);
    EXPECT_TRUE(domain->attach(*group));
    held = std::make_unique<Group>(*std::move(group));
    return *std::move(domain);
  }

  testing::FakeKernel kernel;
  std::unique_ptr<Group> held;
};

TEST_F(DomainTest, SaysWhatTheIommuOffers) {
  const auto domain = attached();
  EXPECT_EQ(domain.offer().unit(), 4096u);
  EXPECT_EQ(domain.offer().ranges, kernel.ranges);
  EXPECT_EQ(domain.offer().entries, 65535u);
}

TEST_F(DomainTest, SaysNothingThatAnOldKernelDoesNotSay) {
  kernel.says_entries = false;
  kernel.ranges.clear();
  const auto domain = attached();
  EXPECT_TRUE(domain.offer().ranges.empty());
  EXPECT_FALSE(domain.offer().entries);
}

TEST_F(DomainTest, MapsAndUnmapsWithTheSameBounds) {
  auto domain = attached();
  ASSERT_TRUE(domain.map(0x10'0000, address(0x7000'0000), 0x20'0000, Access::read));
  const auto& mapping = kernel.mappings.at(0x10'0000);
  EXPECT_EQ(mapping.vaddr, 0x7000'0000u);
  EXPECT_EQ(mapping.size, 0x20'0000u);
  EXPECT_EQ(mapping.flags, unsigned{VFIO_DMA_MAP_FLAG_READ});
  EXPECT_EQ(domain.mapped_bytes(), 0x20'0000u);
  EXPECT_NE(error_of(domain.unmap(0x10'0000, 0x10'0000)), "no error");
  EXPECT_NE(error_of(domain.unmap(0x40'0000, 0x20'0000)), "no error");
  EXPECT_EQ(kernel.mappings.size(), 1u);
  EXPECT_TRUE(domain.unmap(0x10'0000, 0x20'0000));
  EXPECT_TRUE(kernel.mappings.empty());
  EXPECT_EQ(domain.mapped_bytes(), 0u);
}

TEST_F(DomainTest, RefusesInOneLineEach) {
  auto domain = attached();
  EXPECT_NE(error_of(domain.map(0x800, address(0x1000), 4096)).find("multiples of"),
            std::string::npos);
  EXPECT_NE(error_of(domain.map(0, address(0x1000), 0)).find("multiples of"), std::string::npos);
  EXPECT_NE(error_of(domain.map(~0xfffull, address(0x1000), 8192)).find("multiples of"),
            std::string::npos);
  EXPECT_NE(error_of(domain.map(0xfee0'0000, address(0x1000), 4096)).find("reserved"),
            std::string::npos);
  ASSERT_TRUE(domain.map(0, address(0x1000), 8192));
  EXPECT_NE(error_of(domain.map(4096, address(0x9000), 8192)).find("mapped already"),
            std::string::npos);
  kernel.entries = 0;
  EXPECT_NE(error_of(domain.map(0x10000, address(0x1000), 4096)).find("dma_entry_limit"),
            std::string::npos);
}

TEST_F(DomainTest, SaysHowMuchMemoryHasToBeLocked) {
  kernel.locked_limit = 8 << 20;
  auto domain = attached();
  ASSERT_TRUE(domain.map(0, address(0x1000'0000), 4 << 20));
  const auto said = error_of(domain.map(gibibyte, address(0x2000'0000), 256 << 20));
  EXPECT_NE(said.find("260 MiB by now"), std::string::npos) << said;
  EXPECT_NE(said.find("may lock 8.00 MiB"), std::string::npos) << said;
  EXPECT_NE(said.find("LimitMEMLOCK="), std::string::npos) << said;
}

TEST_F(DomainTest, WorksInAContainerThatIsLent) {
  const int fd = kernel.open("/dev/vfio/vfio");
  EXPECT_NE(error_of(Domain::adopt(fd, kernel)).find("no IOMMU yet"), std::string::npos);
  kernel.has_iommu = true;
  {
    auto domain = Domain::adopt(fd, kernel);
    ASSERT_TRUE(domain) << error_of(domain);
    EXPECT_TRUE(domain->map(0, address(0x1000), 4096));
  }
  // The owner's descriptor is open still.
  EXPECT_EQ(kernel.ioctl(fd, VFIO_GET_API_VERSION, 0), VFIO_API_VERSION);
  ::close(fd);
}

TEST_F(DomainTest, GivesAnIommuToAContainerThatIsLentWithoutOne) {
  const int fd = kernel.open("/dev/vfio/vfio");
  auto group = Group::open(7, kernel);
  ASSERT_TRUE(group);
  {
    auto domain = Domain::borrow(fd, kernel);
    EXPECT_FALSE(kernel.has_iommu);
    ASSERT_TRUE(domain.attach(*group));
    EXPECT_TRUE(kernel.has_iommu);
    EXPECT_EQ(domain.offer().ranges, kernel.ranges);
    EXPECT_TRUE(domain.map(0, address(0x1000), 4096));
  }
  EXPECT_EQ(kernel.ioctl(fd, VFIO_GET_API_VERSION, 0), VFIO_API_VERSION);
  ::close(fd);
}

TEST_F(DomainTest, SaysWhatIsWrongWithTheHost) {
  kernel.container_error = ENOENT;
  EXPECT_NE(error_of(Domain::open(kernel)).find("modprobe vfio-pci"), std::string::npos);
  kernel.container_error = 0;
  kernel.type1v2 = false;
  EXPECT_NE(error_of(Domain::open(kernel)).find("vfio_iommu_type1"), std::string::npos);
  kernel.type1v2 = true;
  kernel.set_iommu_error = EPERM;
  auto domain = Domain::open(kernel);
  auto group = Group::open(7, kernel);
  ASSERT_TRUE(domain && group);
  EXPECT_NE(error_of(domain->attach(*group)).find("interrupt remapping"), std::string::npos);
  EXPECT_FALSE(kernel.groups[7].attached);
}

TEST_F(DomainTest, GroupsGoInAndOut) {
  auto domain = attached();
  auto second = Group::open(8, kernel);
  ASSERT_TRUE(second);
  EXPECT_TRUE(domain.attach(*second));
  EXPECT_NE(error_of(domain.attach(*second)).find("another domain"), std::string::npos);
  domain.detach(*second);
  EXPECT_FALSE(kernel.groups[8].attached);
  EXPECT_TRUE(kernel.groups[7].attached);
}

TEST_F(DomainTest, SaysWhyAGroupCannotBeHad) {
  EXPECT_NE(error_of(Group::open(99, kernel)).find("bind a function"), std::string::npos);
  kernel.groups[7].error = EBUSY;
  EXPECT_NE(error_of(Group::open(7, kernel)).find("another process"), std::string::npos);
  kernel.groups[7].error = EACCES;
  EXPECT_NE(error_of(Group::open(7, kernel)).find("chown"), std::string::npos);
  kernel.groups[7].error = 0;
  kernel.groups[7].viable = false;
  EXPECT_NE(error_of(Group::open(7, kernel)).find("a driver of the host"), std::string::npos);
}

// --- The planner ---

Offer wide_offer() {
  Offer offer;
  offer.ranges = {{0, 0xfedf'ffff}, {0xfef0'0000, (1ull << 48) - 1}};
  offer.entries = 65535;
  return offer;
}

TEST(Plan, KeepsARegionWhole) {
  const auto made = plan(4 * gibibyte, 300 * gibibyte, wide_offer());
  ASSERT_TRUE(made);
  EXPECT_EQ(made->pieces, (std::vector<Piece>{{4 * gibibyte, 0, 300 * gibibyte}}));
  EXPECT_EQ(made->left_out, 0u);
}

TEST(Plan, CutsAtReservedAddressesAlone) {
  const auto made = plan(0, 8 * gibibyte, wide_offer());
  ASSERT_TRUE(made);
  ASSERT_EQ(made->pieces.size(), 2u);
  EXPECT_EQ(made->pieces[0], (Piece{0, 0, 0xfee0'0000}));
  EXPECT_EQ(made->pieces[1], (Piece{0xfef0'0000, 0xfef0'0000, 8 * gibibyte - 0xfef0'0000}));
  EXPECT_EQ(made->left_out, 0x10'0000u);
}

TEST(Plan, RoundsRangesToWholeUnits) {
  Offer offer;
  offer.page_sizes = 0x10000;
  offer.ranges = {{0x800, 0x2'0fff}};
  const auto made = plan(0, 0x4'0000, offer);
  ASSERT_TRUE(made);
  EXPECT_EQ(made->pieces, (std::vector<Piece>{{0x1'0000, 0x1'0000, 0x1'0000}}));
  EXPECT_EQ(made->left_out, 0x3'0000u);
}

TEST(Plan, RefusesWhatCannotBe) {
  EXPECT_FALSE(plan(1, 4096, wide_offer()));
  EXPECT_FALSE(plan(0, 0, wide_offer()));
  EXPECT_FALSE(plan(~0xfffull, 8192, wide_offer()));
  const auto far = plan(1ull << 52, gibibyte, wide_offer());
  ASSERT_FALSE(far);
  EXPECT_NE(far.error().message.find("0xffffffffffff"), std::string::npos) << far.error().message;
  auto few = wide_offer();
  few.entries = 1;
  const auto cut = plan(0, 8 * gibibyte, few);
  ASSERT_FALSE(cut);
  EXPECT_NE(cut.error().message.find("takes 2 mappings and 1"), std::string::npos);
  Offer any;  // an old kernel's
  EXPECT_TRUE(plan(1ull << 52, gibibyte, any));
}

// --- The map ---

TEST_F(DomainTest, MapsBeyond128GiBInOneMappingEach) {
  auto domain = attached();
  DmaMap map{domain};
  const auto left_out = map.add(4 * gibibyte, address(1ull << 40), 400 * gibibyte);
  ASSERT_TRUE(left_out) << error_of(left_out);
  EXPECT_EQ(*left_out, 0u);
  EXPECT_EQ(kernel.maps_made, 1u);
  EXPECT_EQ(kernel.locked(), 400 * gibibyte);
}

TEST_F(DomainTest, MapsFarMoreThan256Regions) {
  auto domain = attached();
  DmaMap map{domain};
  constexpr unsigned many = 1000;
  for (std::uint64_t i = 0; i < many; ++i) {
    ASSERT_TRUE(
        map.add(4 * gibibyte + i * 0x20'0000, address(0x10'0000'0000 + i * 0x40'0000), 0x20'0000));
  }
  EXPECT_EQ(kernel.mappings.size(), many);
  EXPECT_EQ(map.regions(), many);
  map.remove(4 * gibibyte);
  map.remove(4 * gibibyte);  // is not there any more
  EXPECT_EQ(kernel.mappings.size(), many - 1);
  map.clear();
  EXPECT_TRUE(kernel.mappings.empty());
}

TEST_F(DomainTest, MapsAllOfARegionOrNothing) {
  kernel.locked_limit = 0xff00'0000;
  auto domain = attached();
  DmaMap map{domain};
  // The first piece fits below the limit, the second does not.
  EXPECT_FALSE(map.add(0, address(1ull << 40), 8 * gibibyte));
  EXPECT_EQ(kernel.maps_made, 1u);
  EXPECT_TRUE(kernel.mappings.empty());
  EXPECT_EQ(map.regions(), 0u);
}

TEST_F(DomainTest, UnmapsThePiecesThatItMapped) {
  auto domain = attached();
  {
    DmaMap map{domain};
    const auto left_out = map.add(0, address(1ull << 40), 8 * gibibyte);
    ASSERT_TRUE(left_out);
    EXPECT_EQ(*left_out, 0x10'0000u);
    EXPECT_EQ(kernel.mappings.size(), 2u);
    EXPECT_EQ(kernel.mappings.at(0xfef0'0000).vaddr, (1ull << 40) + 0xfef0'0000);
  }
  EXPECT_TRUE(kernel.mappings.empty());
}

}  // namespace
}  // namespace millrace::vfio

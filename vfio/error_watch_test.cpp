#include "vfio/error_watch.hpp"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vfio/domain.hpp"
#include "vfio/testing/fake_kernel.hpp"

namespace millrace::vfio {
namespace {

constexpr auto address = "0000:01:10.0";

struct ErrorWatchTest : ::testing::Test {
  ErrorWatchTest() {
    function.address = address;
    auto domain_made = Domain::open(kernel);
    domain = std::make_unique<Domain>(*std::move(domain_made));
    auto group_made = Group::open(7, kernel);
    group = std::make_unique<Group>(*std::move(group_made));
    EXPECT_TRUE(domain->attach(*group));
  }
  [[nodiscard]] int wired() const {
    const auto found = function.eventfds.find({static_cast<unsigned>(Irq::error), 0});
    return found == function.eventfds.end() ? -1 : found->second;
  }

  testing::FakeKernel kernel;
  testing::FakeKernel::Function& function{kernel.groups[7].function};
  std::unique_ptr<Domain> domain;
  std::unique_ptr<Group> group;
};

TEST_F(ErrorWatchTest, HearsOfErrorsBesideTheDriver) {
  function.has_driver = true;
  const auto driver = Device::open(*group, address, kernel);
  ASSERT_TRUE(driver);
  {
    const auto watch = ErrorWatch::of(group->fd(), group->number(), address, kernel);
    ASSERT_TRUE(watch) << watch.error().message;
    ASSERT_EQ(wired(), watch->fd());
    EXPECT_FALSE(watch->heard());
    const std::uint64_t one = 1;
    ASSERT_EQ(::write(wired(), &one, sizeof one), 8);
    EXPECT_TRUE(watch->heard());
    EXPECT_TRUE(watch->heard());
  }
  EXPECT_EQ(wired(), -1);  // the driver goes on, and the kernel signals nobody
  EXPECT_TRUE(driver->reset());
}

TEST_F(ErrorWatchTest, SwitchesMemoryDecodingOnAgain) {
  auto& config = function.regions[region_config];
  config.resize(4096);
  config[4] = std::byte{0x04};  // bus master
  config[5] = std::byte{0x04};  // no INTx
  const auto watch = ErrorWatch::of(group->fd(), group->number(), address, kernel);
  ASSERT_TRUE(watch) << watch.error().message;
  watch->put_back_registers();
  EXPECT_EQ(config[4], std::byte{0x06});
  EXPECT_EQ(config[5], std::byte{0x04});
}

TEST_F(ErrorWatchTest, SaysWhereItCannot) {
  function.has_driver = true;
  function.vectors[static_cast<unsigned>(Irq::error)] = 0;
  const auto silent = ErrorWatch::of(group->fd(), group->number(), address, kernel);
  ASSERT_FALSE(silent);
  EXPECT_EQ(silent.error().message, "0000:01:10.0 reports no errors");
  const auto other = ErrorWatch::of(group->fd(), group->number(), "0000:01:10.1", kernel);
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message.find("is no function of IOMMU group 7"), std::string::npos);
}

}  // namespace
}  // namespace millrace::vfio

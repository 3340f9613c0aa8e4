// What one device of a guest pinned, another one of the same daemon leaves alone.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.hpp"
#include "daemon/topology.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::daemon {
namespace {

using virtio::testing::FakeDriver;

constexpr std::uint64_t page = 4096;
constexpr unsigned reporting_queue = 3;

class PinnedTopology : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = "/tmp/millrace-pinned-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    const std::string image = folder_ + "/disk.img";
    const base::Fd file{::open(image.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
    ASSERT_EQ(::ftruncate(file.get(), 1 << 20), 0);
    Config config;
    config.cores = {0};
    config.disks.emplace_back();
    config.disks[0].device.name = "disk";
    config.disks[0].device.path = image;
    config.disks[0].device.pin = blk::PinMode::automatic;
    config.disks[0].server.socket = folder_ + "/disk.sock";
    config.companions.emplace_back();
    config.companions[0].device = {"balloon", guest::BalloonSettings{}};
    config.companions[0].server.socket = folder_ + "/balloon.sock";
    auto made = Topology::make(loop_, config);
    ASSERT_TRUE(made) << made.error().message;
    topology_ = *std::move(made);
    bool added = false;
    topology_->add_all(config, [&added](const base::Result<void>& result) {
      ASSERT_TRUE(result) << result.error().message;
      added = true;
    });
    ASSERT_TRUE(wait([&] { return added; }));
  }
  void TearDown() override {
    bool closed = false;
    if (topology_ != nullptr) topology_->close([&closed] { closed = true; });
    while (topology_ != nullptr && !closed) loop_.step(std::chrono::milliseconds{10});
    topology_.reset();
    std::filesystem::remove_all(folder_);
  }

  bool wait(const std::function<bool()>& until) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{60};
    while (!until()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      loop_.step(std::chrono::milliseconds{1});
    }
    return true;
  }
  void start(virtio::Device& device, virtio::QueueStart start) {
    bool started = false;
    device.start_queue(std::move(start), [&](const base::Result<void>& result) {
      EXPECT_TRUE(result) << result.error().message;
      started = true;
    });
    EXPECT_TRUE(wait([&] { return started; }));
  }
  void stop(virtio::Device& device, unsigned queue) {
    bool stopped = false;
    device.stop_queue(queue, [&](std::uint32_t) { stopped = true; });
    EXPECT_TRUE(wait([&] { return stopped; }));
  }
  // The guest says that it does not need two pages. Answers the first byte of them afterwards.
  std::byte report(FakeDriver& driver) {
    driver.fill(FakeDriver::data_address, 2 * page, 0x5a);
    EXPECT_TRUE(driver.add({}, {{FakeDriver::data_address, 2 * page}}));
    driver.submit();
    EXPECT_TRUE(wait([&] { return driver.poll().has_value(); }));
    return *driver.at(FakeDriver::data_address);
  }
  [[nodiscard]] std::string pins() const {
    return topology_->disks().at("disk")->device->backend_status().pin.state;
  }

  std::string folder_;
  base::EventLoop loop_;
  std::unique_ptr<Topology> topology_;
};

TEST_F(PinnedTopology, ABalloonLeavesWhatADiskPinned) {
  auto& disk = *topology_->disks().at("disk")->device;
  auto& balloon = *topology_->companions().at("balloon")->device;
  if (!disk.backend_status().pin.why.empty()) GTEST_SKIP() << disk.backend_status().pin.why;
  FakeDriver driver{{.size = 64}};
  for (virtio::Device* device :
       {static_cast<virtio::Device*>(&disk), static_cast<virtio::Device*>(&balloon)}) {
    device->set_features(device->features() & ~virtio::feature::ring_packed);
  }
  start(balloon, driver.start(reporting_queue));
  EXPECT_EQ(report(driver), std::byte{0});  // the host has them
  // The disk has the same memory; it takes nothing from the ring, which is the balloon's.
  start(disk, driver.start(0, false));
  ASSERT_TRUE(wait([&] { return pins() != "waiting"; }));
  ASSERT_EQ(pins(), "pinned") << disk.backend_status().pin.why;
  EXPECT_EQ(report(driver), std::byte{0x5a});
  stop(disk, 0);
  EXPECT_TRUE(wait([&] { return report(driver) == std::byte{0}; }));
  stop(balloon, reporting_queue);
}

}  // namespace
}  // namespace millrace::daemon

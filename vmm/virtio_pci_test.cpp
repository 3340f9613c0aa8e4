#include "vmm/virtio_pci.hpp"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <random>

#include "virtio/features.hpp"
#include "vmm/testing/fake_backend.hpp"
#include "vmm/testing/fake_machine.hpp"
#include "vmm/testing/pci_driver.hpp"

namespace millrace::vmm {
namespace {

namespace vf = virtio::feature;
using testing::FakeBackend, testing::FakeDoorbells, testing::FakeInterrupts, testing::PciDriver;
using testing::signalled;
using virtio::wire::PciCapability, virtio::wire::PciCommon;
using namespace std::chrono_literals;

constexpr std::uint64_t offered = vf::version_1 | vf::ring_reset | vf::event_idx | 0x20;
constexpr std::uint8_t features_ok = 11, driving = 15, needs_reset = 64;

std::unique_ptr<VirtioPci> make_device(FakeBackend*& backend, Interrupts& interrupts,
                                       Doorbells& doorbells) {
  auto made = std::make_unique<FakeBackend>(3);
  backend = made.get();
  backend->offered = offered;
  for (std::size_t i = 0; i < backend->space.size(); ++i) backend->space[i] = std::byte(i + 1);
  auto parts = VirtioPci::make_parts(std::move(made), interrupts);
  CHECK(parts.has_value());
  return std::make_unique<VirtioPci>(std::uint8_t{2}, 0x018000, *std::move(parts), doorbells);
}

struct Guest {
  // All queues but the last one set up, with vectors 1 and 2; the configuration has vector 0.
  void start(std::uint64_t features = offered) {
    ASSERT_TRUE(driver.negotiate(features));
    driver.set_common(offsetof(PciCommon, config_vector), std::uint16_t{0});
    driver.set_up_queue(0, 64, 0x1000, 0x2000, 0x3000, 1);
    driver.set_up_queue(1, 128, 0x1'0000'4000, 0x5000, 0x6000, 2);
    driver.enable_vectors(4, 0x40);
    driver.drive();
    ASSERT_TRUE(backend->active);
  }
  FakeInterrupts interrupts;
  FakeDoorbells doorbells;
  FakeBackend* backend = nullptr;
  std::unique_ptr<VirtioPci> device = make_device(backend, interrupts, doorbells);
  PciDriver driver{*device};
};

TEST(VirtioPci, IsFoundByItsIdentityAndCapabilities) {
  Guest guest;
  EXPECT_EQ(guest.driver.config_read<std::uint16_t>(0), 0x1af4);
  EXPECT_EQ(guest.driver.config_read<std::uint16_t>(2), 0x1042);
  EXPECT_EQ(guest.driver.config_read<std::uint32_t>(8), 0x01800001u);
  for (const auto type : {PciCapability::common, PciCapability::notify, PciCapability::isr,
                          PciCapability::device, PciCapability::window}) {
    EXPECT_TRUE(guest.driver.has(type)) << static_cast<int>(type);
  }
  EXPECT_EQ(guest.driver.at(PciCapability::device).size, 60u);
  EXPECT_EQ(guest.driver.at(PciCapability::notify).size, 12u);
  EXPECT_EQ(guest.driver.config_read<std::uint16_t>(guest.driver.msix() + 2u), 3);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, num_queues)), 3);
  EXPECT_EQ(guest.driver.device<std::uint32_t>(0), 0x04030201u);
}

TEST(VirtioPci, OffersFeaturesByWords) {
  Guest guest;
  EXPECT_EQ(guest.driver.offered(), offered);
  guest.driver.set_common(offsetof(PciCommon, device_feature_select), 2u);
  EXPECT_EQ(guest.driver.common<std::uint32_t>(offsetof(PciCommon, device_feature)), 0u);
}

TEST(VirtioPci, RefusesFeaturesThatWereNotOffered) {
  Guest guest;
  EXPECT_FALSE(guest.driver.negotiate(offered | 0x40));
  EXPECT_FALSE(guest.driver.negotiate(vf::event_idx)) << "VERSION_1 is missing";
  guest.driver.set_status(driving);
  EXPECT_FALSE(guest.backend->active) << "DRIVER_OK without FEATURES_OK";
  EXPECT_TRUE(guest.driver.negotiate(vf::version_1));
  guest.driver.set_common(offsetof(PciCommon, driver_feature), 0x40u);
  guest.driver.drive();
  EXPECT_EQ(guest.backend->negotiated, vf::version_1) << "they are frozen";
}

TEST(VirtioPci, HandsQueuesOver) {
  Guest guest;
  guest.start();
  ASSERT_EQ(guest.backend->running.size(), 2u);
  const auto& queue = guest.backend->running[1];
  EXPECT_EQ(queue.size, 128);
  EXPECT_EQ(queue.descriptors, 0x1'0000'4000u);
  EXPECT_EQ(queue.driver, 0x5000u);
  EXPECT_EQ(queue.device, 0x6000u);
  EXPECT_EQ(queue.call, guest.interrupts.vectors[2]->eventfd());
  EXPECT_EQ(guest.backend->negotiated, offered);
  EXPECT_EQ(guest.driver.status(), driving);
}

TEST(VirtioPci, AResetOfItsBusIsAResetOfTheDevice) {
  Guest guest;
  guest.start();
  const auto bar = guest.device->bar(VirtioPci::structures_bar).address;
  guest.device->reset();
  EXPECT_EQ(guest.backend->stops, 1u);
  EXPECT_EQ(guest.doorbells.count(), 0u);
  EXPECT_EQ(guest.driver.config_read<std::uint16_t>(4), 0);
  EXPECT_EQ(guest.driver.config_read<std::uint16_t>(guest.driver.msix() + 2u), 3);
  EXPECT_EQ(guest.device->bar(VirtioPci::structures_bar).address, 0u);
  EXPECT_EQ(guest.device->bar(VirtioPci::structures_bar).size, VirtioPci::structures_size);
  guest.backend->finish_stop();
  guest.device->assign_bar(VirtioPci::structures_bar, bar);
  guest.driver.config_write<std::uint16_t>(4, 6);
  EXPECT_EQ(guest.driver.status(), 0);
}

TEST(VirtioPci, KicksThroughDoorbells) {
  Guest guest;
  EXPECT_EQ(guest.doorbells.count(), 0u);
  guest.start();
  EXPECT_EQ(guest.doorbells.count(), 2u);
  EXPECT_NE(guest.driver.doorbell(0), guest.driver.doorbell(1));
  EXPECT_TRUE(guest.doorbells.ring(guest.driver.doorbell(1)));
  EXPECT_TRUE(signalled(guest.backend->running[1].kick));
  EXPECT_FALSE(signalled(guest.backend->running[0].kick));
}

TEST(VirtioPci, KicksWithoutDoorbells) {
  Guest guest;
  guest.doorbells.refuse = true;
  guest.start();
  guest.driver.write(guest.driver.doorbell(0), std::uint16_t{0});
  EXPECT_TRUE(signalled(guest.backend->running[0].kick));
  guest.driver.write(guest.driver.doorbell(2), std::uint16_t{2});
  guest.driver.write(guest.driver.doorbell(1) + 1, std::uint8_t{1});
  EXPECT_FALSE(signalled(guest.backend->running[1].kick));
}

TEST(VirtioPci, DoorbellsFollowTheBar) {
  Guest guest;
  guest.start();
  const auto before = guest.driver.doorbell(0);
  guest.driver.config_write<std::uint16_t>(4, 0);
  EXPECT_EQ(guest.doorbells.count(), 0u);
  guest.driver.config_write<std::uint32_t>(0x20, 0x8000'000c);
  guest.driver.config_write<std::uint16_t>(4, 2);
  EXPECT_EQ(guest.doorbells.count(), 2u);
  EXPECT_FALSE(guest.doorbells.ring(before));
  EXPECT_TRUE(guest.doorbells.ring(0x40'8000'0000 + VirtioPci::notify_at));
}

TEST(VirtioPci, ResetTakesItsTime) {
  Guest guest;
  guest.start();
  guest.driver.set_status(0);
  EXPECT_EQ(guest.backend->stops, 1u);
  EXPECT_NE(guest.driver.status(), 0);
  guest.driver.set_status(1);
  guest.driver.set_status(0);
  EXPECT_EQ(guest.backend->stops, 1u) << "one reset at a time";
  guest.backend->finish_stop();
  EXPECT_EQ(guest.driver.status(), 0);
  EXPECT_EQ(guest.doorbells.count(), 0u);
  guest.driver.select(1);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_size)), 256);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_enable)), 0);
  EXPECT_EQ(guest.driver.common<std::uint64_t>(offsetof(PciCommon, queue_descriptors)), 0u);
  guest.start();
}

TEST(VirtioPci, ResetOfAnIdleDeviceIsImmediate) {
  Guest guest;
  ASSERT_TRUE(guest.driver.negotiate(offered));
  guest.driver.set_status(0);
  EXPECT_EQ(guest.driver.status(), 0);
  EXPECT_EQ(guest.backend->stops, 0u);
}

TEST(VirtioPci, ResetsOneQueue) {
  Guest guest;
  guest.start();
  guest.driver.select(1);
  guest.driver.set_common(offsetof(PciCommon, queue_reset), std::uint16_t{1});
  EXPECT_EQ(guest.backend->queue_stops, std::vector<unsigned>{1});
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_reset)), 1);
  EXPECT_EQ(guest.doorbells.count(), 1u);
  guest.driver.set_up_queue(1, 64, 0x7000, 0x8000, 0x9000, 2);
  EXPECT_EQ(guest.backend->running[1].size, 128) << "not before the reset is over";
  guest.backend->finish_queue_stop(1);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_reset)), 0);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_enable)), 0);
  guest.driver.set_up_queue(1, 64, 0x7000, 0x8000, 0x9000, 2);
  EXPECT_EQ(guest.backend->running[1].size, 64);
  EXPECT_EQ(guest.backend->running[1].descriptors, 0x7000u);
  EXPECT_EQ(guest.doorbells.count(), 2u);
}

TEST(VirtioPci, ResetsNoQueueWithoutTheFeature) {
  Guest guest;
  guest.start(vf::version_1);
  guest.driver.select(0);
  guest.driver.set_common(offsetof(PciCommon, queue_reset), std::uint16_t{1});
  EXPECT_TRUE(guest.backend->queue_stops.empty());
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_reset)), 0);
}

TEST(VirtioPci, TellsOfChangedConfiguration) {
  Guest guest;
  guest.start();
  const auto before = guest.driver.common<std::uint8_t>(offsetof(PciCommon, generation));
  guest.backend->listener->config_changed(guest.backend->space);
  EXPECT_FALSE(guest.interrupts.vectors[0]->delivered()) << "nothing changed";
  guest.backend->space[3] = std::byte{0x77};
  guest.backend->listener->config_changed(guest.backend->space);
  EXPECT_NE(guest.driver.common<std::uint8_t>(offsetof(PciCommon, generation)), before);
  EXPECT_EQ(guest.driver.device<std::uint8_t>(3), 0x77);
  EXPECT_TRUE(guest.interrupts.vectors[0]->delivered());
  const auto isr = guest.driver.at(PciCapability::isr).address;
  EXPECT_EQ(guest.driver.read<std::uint8_t>(isr), virtio::wire::isr_config);
  EXPECT_EQ(guest.driver.read<std::uint8_t>(isr), 0) << "reading clears it";
}

TEST(VirtioPci, TellsThatItNeedsReset) {
  Guest guest;
  guest.start();
  guest.backend->listener->needs_reset();
  EXPECT_EQ(guest.driver.status(), driving | needs_reset);
  EXPECT_TRUE(guest.interrupts.vectors[0]->delivered());
  guest.driver.set_status(driving);
  EXPECT_EQ(guest.driver.status(), driving | needs_reset);
  guest.driver.set_status(0);
  guest.backend->finish_stop();
  EXPECT_EQ(guest.driver.status(), 0);
}

TEST(VirtioPci, PassesWritesToTheConfigurationOn) {
  Guest guest;
  const auto space = guest.driver.at(PciCapability::device).address;
  guest.driver.write(space + 32, std::uint8_t{0});
  ASSERT_EQ(guest.backend->writes.size(), 1u);
  EXPECT_EQ(guest.backend->writes[0].offset, 32u);
  EXPECT_EQ(guest.driver.device<std::uint8_t>(32), 0);
  guest.backend->accept_writes = false;
  guest.driver.write(space + 32, std::uint8_t{9});
  EXPECT_EQ(guest.driver.device<std::uint8_t>(32), 0);
  guest.driver.write(space + 59, std::uint16_t{9});
  EXPECT_EQ(guest.backend->writes.size(), 2u) << "beyond the end";
}

TEST(VirtioPci, MovesACallWhileRunning) {
  Guest guest;
  guest.start();
  guest.driver.select(0);
  guest.driver.set_common(offsetof(PciCommon, queue_vector), std::uint16_t{3});
  EXPECT_EQ(guest.backend->running[0].call, guest.interrupts.vectors[3]->eventfd());
  guest.driver.set_common(offsetof(PciCommon, queue_vector), std::uint16_t{4});
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_vector)), 0xffff);
  EXPECT_EQ(guest.backend->running[0].call, -1);
}

TEST(VirtioPci, WindowReachesTheStructures) {
  Guest guest;
  const auto window = guest.driver.at(PciCapability::window).capability;
  const auto aim = [&](std::uint32_t offset, std::uint32_t size, std::uint8_t bar) {
    guest.driver.config_write<std::uint8_t>(window + 4u, bar);
    guest.driver.config_write<std::uint32_t>(window + 8u, offset);
    guest.driver.config_write<std::uint32_t>(window + 12u, size);
  };
  aim(offsetof(PciCommon, num_queues), 2, 4);
  EXPECT_EQ(guest.driver.config_read<std::uint16_t>(window + 16u), 3);
  aim(offsetof(PciCommon, queue_select), 2, 4);
  guest.driver.config_write<std::uint16_t>(window + 16u, 2);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_select)), 2);
  for (const auto size : {0u, 3u, 8u, ~0u}) {
    aim(offsetof(PciCommon, queue_select), size, 4);
    guest.driver.config_write<std::uint16_t>(window + 16u, 1);
  }
  aim(offsetof(PciCommon, queue_select), 2, 0);
  guest.driver.config_write<std::uint16_t>(window + 16u, 1);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_select)), 2);
}

TEST(VirtioPci, TakesNoQueueSizeThatIsNone) {
  Guest guest;
  ASSERT_TRUE(guest.driver.negotiate(offered));
  guest.driver.select(0);
  for (const std::uint16_t size : std::initializer_list<std::uint16_t>{0, 3, 300, 512}) {
    guest.driver.set_common(offsetof(PciCommon, queue_size), size);
    EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_size)), 256) << size;
  }
  guest.driver.select(3);
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_size)), 0);
  guest.driver.set_common(offsetof(PciCommon, queue_enable), std::uint16_t{1});
  EXPECT_EQ(guest.driver.common<std::uint16_t>(offsetof(PciCommon, queue_enable)), 0);
}

TEST(VirtioPci, SurvivesEveryAccess) {
  Guest guest;
  std::mt19937_64 random{11};
  std::array<std::byte, 8> data{};
  for (int i = 0; i < 60'000; ++i) {
    for (auto& byte : data) byte = static_cast<std::byte>(random() % 4 == 0 ? random() : i % 16);
    const auto size = 1 + random() % 8;
    const auto page = (random() % 4) * 0x1000;
    const auto at = PciDriver::structures_address + page + random() % (random() % 2 ? 80 : 0x1000);
    if (random() % 3 != 0) {
      static_cast<void>(guest.driver.bus().write(at, std::span{data}.first(size)));
    } else {
      static_cast<void>(guest.driver.bus().read(at, std::span{data}.first(size)));
    }
    const auto width = 1u << random() % 3;
    const auto offset = static_cast<std::uint32_t>(random() % 256) & ~(width - 1);
    const bool header = offset < 0x40;  // BARs that move are another test's
    if (i % 4 == 0 && !header) guest.device->config_write(offset, std::span{data}.first(width));
    if (i % 7 == 0) guest.device->config_read(offset, std::span{data}.first(width));
    if (i % 64 == 0 && guest.backend->stops != 0) {
      guest.backend->stops = 0;
      guest.backend->finish_stop();
    }
    for (const auto queue : std::exchange(guest.backend->queue_stops, {})) {
      guest.backend->finish_queue_stop(queue);
    }
  }
  guest.driver.set_status(0);
  guest.backend->finish_stop();
  EXPECT_EQ(guest.driver.status(), 0);
  guest.start();
}

TEST(VirtioPci, LosesItsDoorbellsWithTheBus) {
  FakeInterrupts interrupts;
  FakeDoorbells doorbells;
  FakeBackend* backend = nullptr;
  auto device = make_device(backend, interrupts, doorbells);
  {
    PciDriver driver{*device};
    ASSERT_TRUE(driver.negotiate(offered));
    driver.set_up_queue(0, 64, 0x1000, 0x2000, 0x3000, 1);
    EXPECT_EQ(doorbells.count(), 1u);
  }
  EXPECT_EQ(doorbells.count(), 0u) << "the memory bus is gone";
  EXPECT_FALSE(backend->closed);
}

TEST(VirtioPci, RefusesTooManyQueues) {
  FakeInterrupts interrupts;
  const auto parts = VirtioPci::make_parts(std::make_unique<FakeBackend>(257), interrupts);
  ASSERT_FALSE(parts.has_value());
  EXPECT_NE(parts.error().message.find("257 queues"), std::string::npos);
}

}  // namespace
}  // namespace millrace::vmm

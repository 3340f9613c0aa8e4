// The life of a queue across control and real reactors.
#include "virtio/device_base.hpp"

#include <gtest/gtest.h>

#include "virtio/testing/echo_device.hpp"

namespace millrace::virtio {
namespace {

using testing::FakeDriver;

using DeviceBaseTest = testing::EchoDeviceTest;

INSTANTIATE_TEST_SUITE_P(Formats, DeviceBaseTest, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

using Hooks = std::vector<std::string>;

TEST_P(DeviceBaseTest, StartsServesAndStops) {
  send();  // before there is a queue: its kick must not be lost
  ASSERT_TRUE(start());
  expect_served(1);
  send(3);
  expect_served(3);
  const auto status = device_->queue_status(0);
  EXPECT_TRUE(status.started && status.enabled);
  EXPECT_EQ(status.size, 8u);
  EXPECT_EQ(status.packed, GetParam());
  EXPECT_EQ(status.chains, 4u);
  EXPECT_EQ(stop(), GetParam() ? 0x8004'8004u : 4u);
  EXPECT_FALSE(device_->queue_status(0).started);
  EXPECT_EQ(device_->hooks, (Hooks{"started enabled", "stopping", "stopped"}));
  EXPECT_EQ(device_->shared.detached, 1);
  EXPECT_EQ(stop(), 0u);  // not started
}

TEST_P(DeviceBaseTest, WakesFromSleepByAKick) {
  ASSERT_TRUE(start());
  const auto asleep = [this] {
    return pool_->at(device_->queue_status(0).reactor).counters().sleeps.get() != 0 &&
           device_->queue_status(0).kicks_armed != 0;
  };
  until(asleep);
  for (unsigned i = 0; i < 20; ++i) {
    send();
    expect_served(1);
    loop_.step(std::chrono::milliseconds{1});
  }
  stop();
}

TEST_P(DeviceBaseTest, ServesAQueueThatNeverKicks) {
  auto start = driver_.start();
  start.kick.reset();
  start.call.reset();
  ASSERT_TRUE(ask([&](auto done) { device_->start_queue(std::move(start), std::move(done)); }));
  for (unsigned i = 0; i < 5; ++i) {
    ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver_.publish());
    expect_served(1);
  }
  stop();
}

TEST_P(DeviceBaseTest, TakesNothingWhileDisabled) {
  ASSERT_TRUE(start(0, false));
  send();
  ASSERT_TRUE(ask([&](auto done) { device_->enable_queue(0, true, std::move(done)); }));
  expect_served(1);
  EXPECT_EQ(device_->shared.enabled, 1);
  EXPECT_TRUE(device_->queue_status(0).enabled);
  ASSERT_TRUE(ask([&](auto done) { device_->enable_queue(0, false, std::move(done)); }));
  send();
  for (unsigned i = 0; i < 5; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(driver_.poll());
  stop();
  EXPECT_EQ(device_->hooks, (Hooks{"started", "enabled", "disabled", "stopping", "stopped"}));
}

TEST_P(DeviceBaseTest, StopWaitsForWhatIsInFlight) {
  ASSERT_TRUE(start());
  device_->shared.hold = true;
  send(2);
  until([&] { return device_->queue_status(0).chains == 2 || driver_.outstanding() == 0; });
  bool stopped = false;
  device_->stop_queue(0, [&](std::uint32_t) { stopped = true; });
  until([&] { return device_->shared.quiesced != 0; });
  for (unsigned i = 0; i < 5; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(stopped);
  device_->shared.hold = false;
  until([&] { return stopped; });
  expect_served(2);
}

TEST_P(DeviceBaseTest, StopDuringStartComesAfterIt) {
  bool started = false, stopped = false;
  device_->start_queue(driver_.start(), [&](base::Result<void> result) {
    EXPECT_TRUE(result);
    EXPECT_FALSE(stopped);
    started = true;
  });
  device_->stop_queue(0, [&](std::uint32_t) {
    EXPECT_TRUE(started);
    stopped = true;
  });
  until([&] { return stopped; });
  ASSERT_TRUE(start());  // and again
  send();
  expect_served(1);
  stop();
}

TEST_P(DeviceBaseTest, RefusesInOneLine) {
  const auto refused = [](const base::Result<void>& result) {
    return result ? std::string{} : result.error().message;
  };
  EXPECT_EQ(refused(start(3)), "there is no queue 3");
  EXPECT_EQ(refused(ask([&](auto d) { device_->enable_queue(1, true, std::move(d)); })),
            "queue 1 is not started");
  EXPECT_EQ(refused(ask([&](auto d) { device_->set_call(9, {}, std::move(d)); })),
            "there is no queue 9");
  device_->no_worker = true;
  EXPECT_EQ(refused(start()), "queue 0 cannot start: the device has no means");
  device_->no_worker = false;
  ASSERT_TRUE(start());
  EXPECT_EQ(refused(start()), "queue 0 is started already");
  stop();
  EXPECT_EQ(stop(77), 0u);
  EXPECT_FALSE(device_->set_mtu(1500));
}

TEST_P(DeviceBaseTest, SwapsDescriptors) {
  ASSERT_TRUE(start());
  FakeDriver other;
  const auto drained = [&](FakeDriver& driver) { until([&] { return driver.called(); }); };
  drained(driver_);  // one call after the start
  auto fds = other.start();
  ASSERT_TRUE(ask([&](auto done) { device_->set_call(0, std::move(fds.call), std::move(done)); }));
  drained(other);
  static_cast<void>(driver_.arm());
  send();
  expect_served(1);
  drained(other);
  EXPECT_FALSE(driver_.called());
  ASSERT_TRUE(ask([&](auto done) { device_->set_kick(0, std::move(fds.kick), std::move(done)); }));
  for (unsigned i = 0; i < 10; ++i) {
    ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver_.publish());
    other.kick();
    expect_served(1);
  }
  ASSERT_TRUE(ask([&](auto done) { device_->set_kick(0, {}, std::move(done)); }));
  ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver_.publish());
  expect_served(1);
  stop();
}

TEST_P(DeviceBaseTest, OldMemoryLivesUntilNothingRefersToIt) {
  ASSERT_TRUE(start(0));
  device_->shared.hold = true;
  send();
  until([&] { return device_->queue_status(0).chains == 1; });
  const auto regions = driver_.memory()->regions();
  auto first = *GuestMemory::build({regions.begin(), regions.end()});
  const std::weak_ptr<const GuestMemory> watched = first;
  // Held buffers belong to the driver's own snapshot: it is not let go yet.
  bool swapped = false;
  device_->set_memory(std::move(first), [&](base::Result<void>) { swapped = true; });
  for (unsigned i = 0; i < 10; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(swapped);
  device_->shared.hold = false;
  until([&] { return swapped; });
  EXPECT_FALSE(watched.expired());
  ASSERT_TRUE(ask([&](auto d) { device_->set_memory(driver_.memory(), std::move(d)); }));
  EXPECT_TRUE(watched.expired());
  expect_served(1);
  send();
  expect_served(1);
  stop();
  ASSERT_TRUE(ask([&](auto d) { device_->set_memory(driver_.memory(), std::move(d)); }));
}

TEST_P(DeviceBaseTest, TellsControlOfAFaultOnce) {
  std::vector<std::pair<unsigned, Fault>> faults;
  device_->on_fault([&](unsigned index, Fault fault) { faults.emplace_back(index, fault); });
  ASSERT_TRUE(start(2));
  device_->shared.poison = true;
  driver_.kick();
  until([&] { return !faults.empty(); });
  EXPECT_EQ(faults, (std::vector{std::pair{2u, Fault::request_malformed}}));
  EXPECT_EQ(device_->queue_status(2).fault, Fault::request_malformed);
  EXPECT_TRUE(driver_.error_signalled());
  stop(2);
  EXPECT_EQ(faults.size(), 1u);
  driver_.free_all();
  ASSERT_TRUE(start(2));  // a new start is a new life
  EXPECT_EQ(device_->queue_status(2).fault, Fault::none);
  stop(2);
  EXPECT_EQ(faults.size(), 1u);
}

TEST_P(DeviceBaseTest, SetsTheLogOfRunningQueues) {
  ASSERT_TRUE(start());
  const auto bitmap = *base::Mapping::anonymous(1 << 16);
  auto log = std::make_shared<DirtyLog>(bitmap);
  const std::weak_ptr<DirtyLog> watched = log;
  ASSERT_TRUE(ask([&](auto d) { device_->set_log(std::move(log), std::move(d)); }));
  send();
  expect_served(1);
  ASSERT_TRUE(ask([&](auto d) { device_->set_log(nullptr, std::move(d)); }));
  EXPECT_TRUE(watched.expired());
  const auto used = GetParam() ? driver_.descriptors_guest() : driver_.device_area_guest();
  const auto page = used / DirtyLog::page_size;
  EXPECT_NE(std::to_integer<unsigned>(bitmap->data()[page / 8]) >> (page % 8) & 1, 0u);
  stop();
}

}  // namespace
}  // namespace millrace::virtio

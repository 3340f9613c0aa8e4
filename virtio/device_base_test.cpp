// The life of a queue across control and real reactors.
#include "virtio/device_base.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using testing::FakeDriver;

// Gives every buffer back at once, or keeps it until it is told to let go.
class EchoWorker final : public QueueWorker {
 public:
  struct Shared {
    std::atomic<bool> hold{false}, poison{false};
    std::atomic<int> attached{0}, detached{0}, quiesced{0}, enabled{-1};
  };
  EchoWorker(std::unique_ptr<Queue> queue, Shared& shared)
      : QueueWorker{std::move(queue)}, shared_{shared} {}

  bool poll() noexcept override {
    if (shared_.poison.exchange(false)) queue().poison(Fault::request_malformed, calls());
    const bool busy = queue().with_ring([this](auto& ring) {
      bool any = false;
      while (!quiesced_ && queue().enabled() && count_ < held_.size() &&
             ring.take(chain_) == Take::chain) {
        held_[count_++] = chain_.ticket();
        any = true;
      }
      if (!shared_.hold) {
        for (; count_ != 0; any = true) ring.give(held_[--count_], 0);
      }
      return any;
    });
    queue().publish_and_call(calls());
    return busy;
  }
  bool arm() noexcept override {
    const bool work = queue().with_ring([](auto& ring) { return ring.arm(); });
    return work && queue().enabled() && !quiesced_ && count_ < held_.size();
  }
  void disarm() noexcept override {
    queue().with_ring([](auto& ring) { ring.disarm(); });
  }
  void attached(base::Reactor& reactor) noexcept override {
    reactor_ = &reactor;
    ++shared_.attached;
    disarm();
  }
  void enabled_changed(bool enabled) noexcept override { shared_.enabled = enabled; }
  void quiesce() noexcept override {
    quiesced_ = true;
    ++shared_.quiesced;
  }
  bool drained() noexcept override { return count_ == 0; }
  bool memory_released() noexcept override { return count_ == 0; }
  void detached(base::Reactor&) noexcept override { ++shared_.detached; }

 private:
  base::CallSignal& calls() { return reactor_->calls(); }
  Shared& shared_;
  base::Reactor* reactor_ = nullptr;
  Chain chain_;
  std::array<Ticket, 4> held_;
  std::size_t count_ = 0;
  bool quiesced_ = false;
};

class EchoDevice final : public DeviceBase {
 public:
  using DeviceBase::DeviceBase;
  DeviceKind kind() const override { return DeviceKind::blk; }
  std::uint64_t features() const override { return 0; }
  std::span<const std::byte> config() const override { return {}; }
  base::Result<void> write_config(std::uint32_t, std::span<const std::byte>) override { return {}; }
  EchoWorker::Shared shared;
  std::vector<std::string> hooks;
  bool no_worker = false;

 protected:
  std::unique_ptr<QueueWorker> make_worker(std::unique_ptr<Queue> queue) override {
    if (no_worker) return nullptr;
    return std::make_unique<EchoWorker>(std::move(queue), shared);
  }
  void worker_started(QueueWorker&, unsigned, bool enabled, std::function<void()> next) override {
    hooks.push_back(enabled ? "started enabled" : "started");
    next();
  }
  void worker_enabled(QueueWorker&, unsigned, bool enabled, std::function<void()> next) override {
    hooks.push_back(enabled ? "enabled" : "disabled");
    next();
  }
  void worker_stopping(QueueWorker&, unsigned, std::function<void()> next) override {
    hooks.push_back("stopping");
    next();
  }
  void worker_stopped(QueueWorker&) override { hooks.push_back("stopped"); }
};

class DeviceBaseTest : public ::testing::TestWithParam<bool> {
 protected:
  DeviceBaseTest() {
    auto pool = base::ReactorPool::make(loop_, {{.index = 0}, {.index = 1}});
    EXPECT_TRUE(pool.has_value());
    pool_ = *std::move(pool);
    device_ = std::make_unique<EchoDevice>("echo", 3u, *pool_);
  }
  // Turns the loop until `done`; a minute is for ever.
  void until(const std::function<bool()>& done) {
    bool met = done();
    for (unsigned i = 0; i < 60'000 && !met; ++i) {
      loop_.step(std::chrono::milliseconds{1});
      met = done();
    }
    ASSERT_TRUE(met);
  }
  // Makes a request and waits for its answer, which must not come from inside the call.
  base::Result<void> ask(const std::function<void(Device::Done)>& request) {
    bool answered = false;
    base::Result<void> out;
    request([&](base::Result<void> result) {
      answered = true;
      out = std::move(result);
    });
    EXPECT_FALSE(answered);
    until([&] { return answered; });
    return out;
  }
  base::Result<void> start(unsigned index = 0, bool enabled = true) {
    return ask(
        [&](auto done) { device_->start_queue(driver_.start(index, enabled), std::move(done)); });
  }
  std::uint32_t stop(unsigned index = 0) {
    std::uint32_t base = ~0u;
    bool answered = false;
    device_->stop_queue(index, [&](std::uint32_t position) {
      base = position;
      answered = true;
    });
    EXPECT_FALSE(answered);
    until([&] { return answered; });
    return base;
  }
  void send(unsigned count = 1) {
    for (unsigned i = 0; i < count; ++i) {
      ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
    }
    driver_.submit();
  }
  void expect_served(unsigned count) {
    unsigned reaped = 0;
    until([&] {
      while (driver_.poll()) ++reaped;
      return reaped >= count;
    });
    EXPECT_EQ(reaped, count);
  }

  FakeDriver driver_{{.size = 8, .packed = GetParam()}};
  base::EventLoop loop_;
  std::unique_ptr<base::ReactorPool> pool_;
  std::unique_ptr<EchoDevice> device_;
};

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

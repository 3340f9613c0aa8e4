#include "virtio/queue.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "virtio/inflight.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using testing::DriverConfig;
using testing::FakeDriver;

class QueueTest : public ::testing::TestWithParam<bool> {
 protected:
  QueueTest() : driver_{{.size = 8, .packed = GetParam()}} {
    auto queue = Queue::open(driver_.start());
    EXPECT_TRUE(queue.has_value());
    queue_ = *std::move(queue);
    auto calls = base::CallSignal::make();
    EXPECT_TRUE(calls.has_value());
    calls_ = *std::move(calls);
  }
  void publish_one() {
    ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver_.publish());
    Chain chain;
    queue_->with_ring([&](auto& ring) {
      ASSERT_EQ(ring.take(chain), Take::chain);
      ring.give(chain.ticket(), 0);
    });
    queue_->publish_and_call(*calls_);
  }
  void serve_one() {
    publish_one();
    calls_->flush();
  }
  FakeDriver driver_;
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<base::CallSignal> calls_;
};

INSTANTIATE_TEST_SUITE_P(Formats, QueueTest, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

TEST_P(QueueTest, CallsWhereTheDriverWantsIt) {
  EXPECT_EQ(queue_->packed(), GetParam());
  static_cast<void>(driver_.arm());
  serve_one();
  EXPECT_TRUE(driver_.called());
  driver_.disarm();
  serve_one();
  EXPECT_FALSE(driver_.called());
  EXPECT_EQ(queue_->counters.calls.get(), 1u);
  EXPECT_EQ(queue_->counters.calls_suppressed.get(), 1u);
  EXPECT_EQ(queue_->counters.chains.get(), 2u);
  queue_->publish_and_call(*calls_);  // nothing to publish counts nothing
  EXPECT_EQ(queue_->counters.calls_suppressed.get(), 1u);
  static_cast<void>(queue_->with_ring([](auto& ring) { return ring.arm(); }));
  EXPECT_EQ(queue_->counters.kicks_armed.get(), 1u);
}

TEST_P(QueueTest, AsksOnceARoundWhetherACallIsWanted) {
  static_cast<void>(driver_.arm());
  for (int i = 0; i < 3; ++i) {
    publish_one();
    EXPECT_TRUE(driver_.poll());  // it is there before anybody is called
  }
  EXPECT_FALSE(driver_.called());
  calls_->flush();
  EXPECT_TRUE(driver_.called());
  EXPECT_EQ(queue_->counters.calls.get(), 1u);
  calls_->flush();
  EXPECT_FALSE(driver_.called());
  // The driver changes its mind before the round is over.
  publish_one();
  EXPECT_TRUE(driver_.poll());
  driver_.disarm();
  calls_->flush();
  EXPECT_FALSE(driver_.called());
  EXPECT_EQ(queue_->counters.calls_suppressed.get(), 1u);
}

TEST_P(QueueTest, PoisonStopsTakingAndSignalsOnce) {
  ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver_.publish());
  EXPECT_EQ(queue_->fault(), Fault::none);
  queue_->poison(Fault::request_malformed, *calls_);
  queue_->poison(Fault::chain_loop, *calls_);
  calls_->flush();
  EXPECT_EQ(queue_->fault(), Fault::request_malformed);
  EXPECT_EQ(queue_->counters.faults.get(), 1u);
  EXPECT_TRUE(driver_.error_signalled());
  Chain chain;
  EXPECT_EQ(queue_->with_ring([&](auto& ring) { return ring.take(chain); }), Take::fault);
}

TEST_P(QueueTest, NoticesLostMemory) {
  EXPECT_FALSE(queue_->check_memory(*calls_));
  base::install_memory_fault_handler();
  // Another front-end loses its memory: ours is still good.
  const auto lose = [] {
    const base::Fd file{::memfd_create("lost", MFD_CLOEXEC)};
    EXPECT_EQ(::ftruncate(file.get(), 4096), 0);
    auto mapping = *base::Mapping::map(file, 0, 4096);
    EXPECT_EQ(::ftruncate(file.get(), 0), 0);
    static_cast<void>(*static_cast<volatile std::byte*>(mapping->data()));
    EXPECT_TRUE(mapping->faulted());
    return mapping;
  };
  const auto lost = lose();
  EXPECT_FALSE(queue_->check_memory(*calls_));
  std::vector<Region> regions{driver_.memory()->regions().begin(),
                              driver_.memory()->regions().end()};
  regions.push_back({0x9'0000'0000, 4096, 0x1000, lose()});
  auto memory = *GuestMemory::build(regions);
  queue_->swap_memory(memory, *calls_);
  EXPECT_EQ(queue_->fault(), Fault::none);
  lose();
  EXPECT_TRUE(queue_->check_memory(*calls_));
  EXPECT_EQ(queue_->fault(), Fault::memory_lost);
}

TEST_P(QueueTest, KeepsTheMemoryThatItsRingCannotLeave) {
  Chain chain;
  ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver_.publish());
  queue_->with_ring([&](auto& ring) { ASSERT_EQ(ring.take(chain), Take::chain); });
  const auto regions = driver_.memory()->regions();
  auto memory = *GuestMemory::build({regions.begin() + 1, regions.end()});
  queue_->swap_memory(memory, *calls_);
  EXPECT_EQ(memory, nullptr);
  EXPECT_EQ(queue_->fault(), Fault::ring_outside_memory);
  memory = *GuestMemory::build({});
  queue_->swap_memory(memory, *calls_);
  queue_->with_ring([&](auto& ring) { ring.give(chain.ticket(), 0); });
  queue_->publish_and_call(*calls_);
  EXPECT_TRUE(driver_.poll());
}

TEST_P(QueueTest, SwapsLogs) {
  auto log = std::make_shared<DirtyLog>(*base::Mapping::anonymous(4096));
  EXPECT_FALSE(queue_->logging());
  queue_->swap_log(log);
  EXPECT_EQ(log, nullptr);
  EXPECT_TRUE(queue_->logging());
  serve_one();
  queue_->swap_log(log);
  EXPECT_NE(log, nullptr);
  EXPECT_FALSE(queue_->logging());
}

TEST_P(QueueTest, RefusesInOneLine) {
  auto start = driver_.start(3);
  start.ring.size = 0;
  auto queue = Queue::open(std::move(start));
  ASSERT_FALSE(queue);
  EXPECT_EQ(queue.error().message, "queue 3 cannot start: bad queue size");
  start = driver_.start();
  start.memory = nullptr;
  EXPECT_FALSE(Queue::open(std::move(start)));
  // A region for other queues.
  start = driver_.start();
  const auto bytes = InflightRegion::size_for(1, 4, GetParam());
  start.inflight = *InflightRegion::attach(*base::Mapping::anonymous(bytes), 0, 1, 4, GetParam());
  queue = Queue::open(std::move(start));
  ASSERT_FALSE(queue);
  EXPECT_EQ(queue.error().message, "queue 0 cannot start: bad inflight region");
}

// Two threads that sleep on their eventfds whenever arming finds nothing: one lost notification and
// both would sleep for ever.
struct Stress {
  bool packed;
  std::uint64_t features;
};
class NotificationTest : public ::testing::TestWithParam<Stress> {};

// False when nothing came: it was lost.
bool wait_readable(int fd) {
  pollfd wait{fd, POLLIN, 0};
  std::uint64_t count = 0;
  return ::poll(&wait, 1, 60'000) == 1 && ::read(fd, &count, sizeof count) == sizeof count;
}

TEST_P(NotificationTest, NoneIsLost) {
  constexpr unsigned total = 20'000;
  FakeDriver driver{
      {.size = 4, .packed = GetParam().packed, .features = GetParam().features, .start = 3}};
  auto opened = Queue::open(driver.start());
  ASSERT_TRUE(opened);
  Queue& queue = **opened;
  auto calls = *base::CallSignal::make();
  std::thread device{[&] {
    Chain chain;
    unsigned served = 0;
    queue.with_ring([&](auto& ring) {
      ring.disarm();
      while (served < total) {
        const Take result = ring.take(chain);
        if (result == Take::chain) {
          ring.give(chain.ticket(), 0);
          ++served;
          continue;
        }
        ASSERT_EQ(result, Take::empty);
        queue.publish_and_call(*calls);
        calls->flush();
        if (served == total || ring.arm()) continue;
        ASSERT_TRUE(wait_readable(driver.kick_fd()));
        ring.disarm();
      }
    });
    queue.publish_and_call(*calls);
    calls->flush();
  }};
  unsigned sent = 0, reaped = 0;
  while (reaped < total) {
    bool busy = false;
    while (sent < total && driver.add({{FakeDriver::data_address, 1}}, {})) {
      ++sent;
      busy = true;
      if (sent % 3 == 0) break;
    }
    driver.submit();
    for (; driver.poll(); ++reaped) busy = true;
    if (busy || driver.arm()) continue;
    if (wait_readable(driver.call_fd())) continue;
    ADD_FAILURE() << "a call was lost after " << reaped;
    break;
  }
  device.join();
  EXPECT_EQ(queue.counters.chains.get(), total);
}

INSTANTIATE_TEST_SUITE_P(Formats, NotificationTest,
                         ::testing::Values(Stress{false, feature::version_1},
                                           Stress{false, feature::version_1 | feature::event_idx},
                                           Stress{true, feature::version_1},
                                           Stress{true, feature::version_1 | feature::event_idx}),
                         [](const auto& format) {
                           return std::string{format.param.packed ? "Packed" : "Split"} +
                                  ((format.param.features & feature::event_idx) != 0 ? "Event"
                                                                                     : "Flags");
                         });

}  // namespace
}  // namespace millrace::virtio

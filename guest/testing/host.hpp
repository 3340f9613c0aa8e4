// Host: what the daemon has (loop, reactors), and a driver of one queue of a companion, for tests.
// Thread: the test's, which is the control thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "base/reactor_pool.hpp"
#include "guest/device.hpp"
#include "guest/reclaimer.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::guest::testing {

class Host {
 public:
  Host() {
    auto made = base::ReactorPool::make(loop, {base::ReactorConfig{}});
    EXPECT_TRUE(made) << made.error().message;
    pool = std::move(*made);
    auto made_reclaimer = Reclaimer::make({});
    EXPECT_TRUE(made_reclaimer) << made_reclaimer.error().message;
    reclaimer = std::move(*made_reclaimer);
  }
  [[nodiscard]] Means means() { return {loop, *pool, *reclaimer}; }
  // False after 20 seconds.
  bool wait(const std::function<bool()>& until) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (!until()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      loop.step(std::chrono::milliseconds{0});
    }
    return true;
  }

  base::EventLoop loop;
  std::unique_ptr<base::ReactorPool> pool;
  std::unique_ptr<Reclaimer> reclaimer;
};

// One queue: started when made, stopped when destroyed. The device's features are set before.
class Queue {
 public:
  Queue(Host& host, virtio::Device& device, unsigned index,
        virtio::testing::DriverConfig config = {})
      : driver{std::move(config)}, host_{host}, device_{device}, index_{index} {
    bool started = false;
    device.start_queue(driver.start(index), [&](const base::Result<void>& result) {
      EXPECT_TRUE(result) << result.error().message;
      started = true;
    });
    EXPECT_TRUE(host.wait([&] { return started; }));
  }
  ~Queue() { stop(); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Answers the ring's position.
  std::uint32_t stop() {
    if (!std::exchange(running_, false)) return 0;
    bool stopped = false;
    std::uint32_t position = 0;
    device_.stop_queue(index_, [&](std::uint32_t base) {
      position = base;
      stopped = true;
    });
    EXPECT_TRUE(host_.wait([&] { return stopped; })) << "the queue does not drain";
    return position;
  }
  // The next buffer that comes back; length ~0 where none does.
  virtio::testing::Used next() {
    std::optional<virtio::testing::Used> used;
    if (host_.wait([&] { return (used = driver.poll()).has_value(); })) return *used;
    ADD_FAILURE() << "no buffer comes back";
    return {.id = 0, .length = ~0u};
  }

  virtio::testing::FakeDriver driver;

 private:
  Host& host_;
  virtio::Device& device_;
  unsigned index_;
  bool running_ = true;
};

}  // namespace millrace::guest::testing

#include "base/event_loop.hpp"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <optional>
#include <vector>

#include "base/clock.hpp"
#include "base/fd.hpp"

namespace millrace::base {
namespace {

using namespace std::chrono_literals;

Fd make_event(unsigned value) {
  return Fd{::eventfd(value, EFD_NONBLOCK)};
}
void drain(const Fd& fd) {
  std::uint64_t value = 0;
  EXPECT_EQ(::read(fd.get(), &value, sizeof(value)), static_cast<ssize_t>(sizeof(value)));
}
void step_until(EventLoop& loop, const bool& done) {
  while (!done) loop.step(10ms);
}

TEST(EventLoopTest, CallsTheHandlerOfAReadyDescriptor) {
  EventLoop loop;
  const auto fd = make_event(1);
  std::uint32_t seen = 0;
  auto watch = *loop.watch(fd.get(), EPOLLIN, [&](std::uint32_t events) {
    seen = events;
    drain(fd);
  });
  loop.step(0ms);
  EXPECT_EQ(seen, static_cast<std::uint32_t>(EPOLLIN));
  seen = 0;
  loop.step(0ms);
  EXPECT_EQ(seen, 0u);
}

TEST(EventLoopTest, IsLevelTriggeredAndModifiable) {
  EventLoop loop;
  const auto fd = make_event(1);
  int calls = 0;
  auto watch = *loop.watch(fd.get(), EPOLLIN, [&](std::uint32_t) { ++calls; });
  loop.step(0ms);
  loop.step(0ms);
  EXPECT_EQ(calls, 2);
  watch.modify(0);
  loop.step(0ms);
  EXPECT_EQ(calls, 2);
  watch.modify(EPOLLIN);
  loop.step(0ms);
  EXPECT_EQ(calls, 3);
  watch.reset();
  EXPECT_FALSE(watch.active());
  loop.step(0ms);
  EXPECT_EQ(calls, 3);
}

TEST(EventLoopTest, RefusesADescriptorThatCannotBeWatched) {
  EventLoop loop;
  EXPECT_FALSE(loop.watch(-1, EPOLLIN, [](std::uint32_t) {}));
  const auto fd = make_event(0);
  auto first = loop.watch(fd.get(), EPOLLIN, [](std::uint32_t) {});
  EXPECT_TRUE(first);
  EXPECT_FALSE(loop.watch(fd.get(), EPOLLIN, [](std::uint32_t) {}));
}

TEST(EventLoopTest, AHandlerMayDestroyItsOwnWatch) {
  EventLoop loop;
  const auto fd = make_event(1);
  auto alive = std::make_shared<int>(7);
  int seen = 0;
  EventLoop::Watch watch;
  watch = *loop.watch(fd.get(), EPOLLIN, [&watch, &seen, alive](std::uint32_t) {
    watch.reset();
    seen = *alive;  // what the handler holds outlives its own removal
  });
  loop.step(0ms);
  EXPECT_EQ(seen, 7);
  EXPECT_EQ(alive.use_count(), 1);
  loop.step(0ms);
}

TEST(EventLoopTest, AHandlerMayDestroyTheOthersOfTheSameRound) {
  EventLoop loop;
  std::vector<Fd> fds;
  std::vector<EventLoop::Watch> watches;
  int calls = 0;
  for (int i = 0; i < 8; ++i) {
    fds.push_back(make_event(1));
    watches.push_back(*loop.watch(fds.back().get(), EPOLLIN, [&](std::uint32_t) {
      ++calls;
      watches.clear();
    }));
  }
  loop.step(0ms);
  EXPECT_EQ(calls, 1);
}

TEST(EventLoopTest, AnEventOfADestroyedWatchIsNotItsSuccessors) {
  EventLoop loop;
  const auto one = make_event(1);
  auto two = make_event(1);
  EventLoop::Watch first, second, successor;
  int wrong = 0;
  const auto replace = [&](std::uint32_t) {
    first.reset();
    second.reset();
    two = make_event(0);  // most likely the same number
    successor = *loop.watch(two.get(), EPOLLIN, [&](std::uint32_t) { ++wrong; });
  };
  first = *loop.watch(one.get(), EPOLLIN, replace);
  second = *loop.watch(two.get(), EPOLLIN, replace);
  loop.step(0ms);
  loop.step(0ms);
  EXPECT_EQ(wrong, 0);
}

TEST(EventLoopTest, WatchesAndTimersMayOutliveTheLoop) {
  const auto fd = make_event(1);
  EventLoop::Watch watch;
  EventLoop::Timer timer;
  {
    EventLoop loop;
    watch = *loop.watch(fd.get(), EPOLLIN, [](std::uint32_t) {});
    timer = loop.every(1ms, [] {});
  }
  watch.modify(0);
  EXPECT_FALSE(timer.active());
}

TEST(EventLoopTest, ATimerRunsOnceAndNotBeforeItsTime) {
  EventLoop loop;
  bool ran = false;
  int runs = 0;
  const auto start = monotonic_ns();
  EventLoop::Timer timer;
  timer = loop.after(5ms, [&] {
    ran = true;
    ++runs;
    EXPECT_FALSE(timer.active());
  });
  EXPECT_TRUE(timer.active());
  step_until(loop, ran);
  EXPECT_GE(monotonic_ns() - start, 5'000'000u);
  loop.step(8ms);
  EXPECT_EQ(runs, 1);
}

TEST(EventLoopTest, TimersRunInTheOrderOfTheirTimes) {
  EventLoop loop;
  std::vector<int> order;
  bool done = false;
  auto last = loop.after(3ms, [&] {
    order.push_back(3);
    done = true;
  });
  auto first = loop.after(0ns, [&] { order.push_back(1); });
  auto middle = loop.after(1ms, [&] { order.push_back(2); });
  step_until(loop, done);
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(EventLoopTest, APeriodRepeatsUntilCancelledFromWithin) {
  EventLoop loop;
  int runs = 0;
  bool done = false;
  EventLoop::Timer timer;
  timer = loop.every(1ms, [&] {
    EXPECT_TRUE(timer.active());
    if (++runs < 3) return;
    timer.reset();
    done = true;
  });
  step_until(loop, done);
  loop.step(5ms);
  EXPECT_EQ(runs, 3);
}

TEST(EventLoopTest, ATimerMayCancelAnotherThatIsDue) {
  EventLoop loop;
  EventLoop::Timer one, two;
  int runs = 0;
  bool done = false;
  one = loop.after(1ms, [&] {
    ++runs;
    two.reset();
    done = true;
  });
  two = loop.after(1ms, [&] {
    ++runs;
    one.reset();
    done = true;
  });
  step_until(loop, done);
  loop.step(3ms);
  EXPECT_EQ(runs, 1);
}

TEST(EventLoopTest, AReassignedTimerCancelsTheOldOne) {
  EventLoop loop;
  int old_runs = 0;
  bool done = false;
  auto timer = loop.after(1ms, [&] { ++old_runs; });
  timer = loop.after(2ms, [&] { done = true; });
  step_until(loop, done);
  EXPECT_EQ(old_runs, 0);
}

TEST(EventLoopTest, DeferredWorkRunsInTheNextIteration) {
  EventLoop loop;
  std::vector<int> order;
  loop.defer([&] {
    order.push_back(1);
    loop.defer([&] { order.push_back(2); });
  });
  EXPECT_TRUE(order.empty());
  loop.step(1000ms);
  EXPECT_EQ(order, (std::vector<int>{1}));
  loop.step(1000ms);
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(EventLoopTest, RunsUntilStopped) {
  EventLoop loop;
  int steps = 0;
  auto timer = loop.every(1us, [&] {
    if (++steps == 3) loop.stop();
  });
  loop.run();
  EXPECT_GE(steps, 3);
}

}  // namespace
}  // namespace millrace::base

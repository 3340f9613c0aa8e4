#include "base/side_thread.hpp"

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <vector>

namespace millrace::base {
namespace {

using namespace std::chrono_literals;

void step_until(EventLoop& loop, const std::function<bool()>& ready) {
  const auto end = std::chrono::steady_clock::now() + 20s;
  while (!ready()) {
    ASSERT_LT(std::chrono::steady_clock::now(), end);
    loop.step(5ms);
  }
}

TEST(SideThread, DoesInOrderElsewhereAndTellsHere) {
  EventLoop loop;
  const auto side = *SideThread::make(loop, "side");
  std::vector<int> done, told;
  const auto here = std::this_thread::get_id();
  for (int i = 0; i < 3; ++i) {
    side->run([&, i]() -> SideThread::Told {
      EXPECT_NE(std::this_thread::get_id(), here);
      done.push_back(i);
      return [&, i] {
        EXPECT_EQ(std::this_thread::get_id(), here);
        told.push_back(i);
      };
    });
  }
  EXPECT_EQ(side->pending(), 3u);
  step_until(loop, [&] { return side->pending() == 0; });
  EXPECT_THAT(done, ::testing::ElementsAre(0, 1, 2));
  EXPECT_THAT(told, ::testing::ElementsAre(0, 1, 2));
}

TEST(SideThread, TheLoopGoesOnMeanwhile) {
  EventLoop loop;
  const auto side = *SideThread::make(loop, "side");
  std::atomic<bool> may_end = false;
  bool told = false;
  side->run([&]() -> SideThread::Told {
    may_end.wait(false);
    return [&] { told = true; };
  });
  bool deferred = false;
  loop.defer([&] { deferred = true; });
  step_until(loop, [&] { return deferred; });
  EXPECT_FALSE(told);
  EXPECT_EQ(side->pending(), 1u);
  may_end = true;
  may_end.notify_one();
  step_until(loop, [&] { return told; });
}

TEST(SideThread, MayBeEndedByWhatItTells) {
  EventLoop loop;
  auto side = *SideThread::make(loop, "side");
  bool second = false;
  std::atomic<unsigned> done = 0;
  side->run([&]() -> SideThread::Told {
    ++done;
    return [&] { side.reset(); };
  });
  side->run([&]() -> SideThread::Told {
    ++done;
    return [&] { second = true; };
  });
  while (done != 2) std::this_thread::yield();
  step_until(loop, [&] { return side == nullptr; });
  loop.step(5ms);
  EXPECT_FALSE(second);
}

TEST(SideThread, ItsEndWaitsForWhatIsUnderWayAlone) {
  EventLoop loop;
  auto side = *SideThread::make(loop, "side");
  std::atomic<bool> begun = false, ended = false, next = false;
  side->run([&]() -> SideThread::Told {
    begun = true;
    std::this_thread::sleep_for(20ms);
    ended = true;
    return [] {};
  });
  side->run([&]() -> SideThread::Told {
    next = true;
    return [] {};
  });
  while (!begun) std::this_thread::yield();
  side.reset();
  EXPECT_TRUE(ended);
  EXPECT_FALSE(next);
}

}  // namespace
}  // namespace millrace::base

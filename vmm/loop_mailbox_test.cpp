#include "vmm/loop_mailbox.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace millrace::vmm {
namespace {

TEST(LoopMailbox, RunsOnTheLoopsThreadInOrder) {
  base::EventLoop loop;
  auto mailbox = LoopMailbox::make(loop);
  ASSERT_TRUE(mailbox) << mailbox.error().message;
  std::vector<int> seen;
  const auto here = std::this_thread::get_id();
  std::thread other{[&] {
    for (int i = 0; i < 100; ++i) {
      (*mailbox)->post([&, i] {
        EXPECT_EQ(std::this_thread::get_id(), here);
        seen.push_back(i);
      });
    }
    (*mailbox)->post([&] { loop.stop(); });
  }};
  loop.run();
  other.join();
  ASSERT_EQ(seen.size(), 100u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

TEST(LoopMailbox, WorkMayPostWork) {
  base::EventLoop loop;
  auto mailbox = LoopMailbox::make(loop);
  ASSERT_TRUE(mailbox) << mailbox.error().message;
  int done = 0;
  (*mailbox)->post([&] { (*mailbox)->post([&] { ++done; }); });
  loop.step(std::chrono::milliseconds{0});
  EXPECT_EQ(done, 0) << "not before the loop had its turn";
  loop.step(std::chrono::milliseconds{0});
  EXPECT_EQ(done, 1);
}

}  // namespace
}  // namespace millrace::vmm

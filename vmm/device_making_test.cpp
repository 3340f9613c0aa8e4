#include "vmm/device_making.hpp"

#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <future>

#include "base/error.hpp"

namespace millrace::vmm {
namespace {

struct Nothing final : PciFunction {
  Nothing() : PciFunction{PciIdentity{.vendor = 1, .device = 2}} {}
};

bool cancelled(int fd, int milliseconds) {
  struct pollfd one {
    .fd = fd, .events = POLLIN, .revents = 0
  };
  return ::poll(&one, 1, milliseconds) == 1;
}

TEST(DeviceMaking, TheCallerGoesOnMeanwhile) {
  std::promise<void> answer, done;
  std::atomic<bool> is_done = false;
  auto making = DeviceMaking::begin(
      [&](int cancel) -> DeviceMaking::Made {
        answer.get_future().wait();  // a back-end that answers when this test wants it
        EXPECT_FALSE(cancelled(cancel, 0));
        return std::unique_ptr<PciFunction>{std::make_unique<Nothing>()};
      },
      [&] {
        is_done = true;
        done.set_value();
      });
  ASSERT_TRUE(making);
  EXPECT_FALSE(is_done);
  answer.set_value();
  done.get_future().wait();
  const auto made = (*making)->take();
  ASSERT_TRUE(made);
  EXPECT_NE(*made, nullptr);
}

TEST(DeviceMaking, GivingUpReachesWhoWaits) {
  std::promise<void> done;
  auto making = DeviceMaking::begin(
      [](int cancel) -> DeviceMaking::Made {
        EXPECT_TRUE(cancelled(cancel, -1));
        return base::fail("given up");
      },
      [&] { done.set_value(); });
  ASSERT_TRUE(making);
  (*making)->give_up();
  done.get_future().wait();
  const auto made = (*making)->take();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().message, "given up");
}

TEST(DeviceMaking, ItsEndWaitsForItsThread) {
  std::atomic<bool> ended = false;
  auto making = DeviceMaking::begin(
      [](int cancel) -> DeviceMaking::Made {
        EXPECT_TRUE(cancelled(cancel, -1));
        return base::fail("given up");
      },
      [&] { ended = true; });
  ASSERT_TRUE(making);
  making->reset();
  EXPECT_TRUE(ended);
}

}  // namespace
}  // namespace millrace::vmm

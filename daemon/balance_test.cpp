#include "daemon/balance.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace millrace::daemon {
namespace {

using Reactors = std::vector<double>;
using Queues = std::vector<QueueLoad>;

QueueLoad queue(unsigned number, unsigned reactor, double load) {
  return {"port", "web0", number, reactor, load, false, true};
}

TEST(Balance, SpreadsTwoBusyQueuesOverTwoReactors) {
  const auto move = choose_move(Reactors{0.9, 0.0}, Queues{queue(0, 0, 0.45), queue(1, 0, 0.45)});
  ASSERT_TRUE(move);
  EXPECT_EQ(move->reactor, 1u);
}

TEST(Balance, TakesTheQueueThatLeavesThemMostAlike) {
  const auto move =
      choose_move(Reactors{0.2, 0.95, 0.1},
                  Queues{queue(0, 1, 0.6), queue(1, 1, 0.3), queue(2, 1, 0.05), queue(3, 0, 0.2)});
  ASSERT_TRUE(move);
  EXPECT_EQ(move->queue, 1u);  // 0.65 and 0.4, against 0.35 and 0.7
  EXPECT_EQ(move->reactor, 2u);
}

TEST(Balance, LeavesAloneWhatIsNotTooMuch) {
  EXPECT_FALSE(choose_move(Reactors{0.6, 0.0}, Queues{queue(0, 0, 0.3), queue(1, 0, 0.3)}));
}

TEST(Balance, DoesNotSendOneQueueToAndFro) {
  EXPECT_FALSE(choose_move(Reactors{1.0, 0.0}, Queues{queue(0, 0, 1.0)}));
  EXPECT_FALSE(choose_move(Reactors{1.0, 0.0}, Queues{queue(0, 0, 0.9), queue(1, 0, 0.1)}));
  // After a move that gained just enough there is none back.
  const Reactors before{0.9, 0.3};
  const Queues queues{queue(0, 0, 0.45), queue(1, 0, 0.45)};
  const auto move = choose_move(before, queues);
  ASSERT_TRUE(move);
  EXPECT_FALSE(choose_move(Reactors{0.45, 0.75}, Queues{queue(0, 1, 0.45), queue(1, 0, 0.45)}));
}

TEST(Balance, LeavesPinnedAndRestingQueuesWhereTheyAre) {
  Queues queues{queue(0, 0, 0.45), queue(1, 0, 0.45)};
  queues[0].pinned = true;
  queues[1].can_move = false;
  EXPECT_FALSE(choose_move(Reactors{0.9, 0.0}, queues));
  queues[1].can_move = true;
  ASSERT_TRUE(choose_move(Reactors{0.9, 0.0}, queues));
  EXPECT_EQ(choose_move(Reactors{0.9, 0.0}, queues)->queue, 1u);
}

TEST(Balance, NeedsTwoReactors) {
  EXPECT_FALSE(choose_move(Reactors{1.0}, Queues{queue(0, 0, 0.5), queue(1, 0, 0.5)}));
  EXPECT_FALSE(choose_move(Reactors{}, Queues{}));
}

}  // namespace
}  // namespace millrace::daemon

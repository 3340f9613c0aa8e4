#include "switch/wire_loans.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

namespace millrace::vswitch {
namespace {

class Lender final : public Completion {
 public:
  std::uint32_t hold(std::uint32_t token) noexcept override { return token; }
  void release(std::uint32_t receipt) noexcept override { ended.push_back(receipt); }
  std::vector<std::uint32_t> ended;
};

// A device's ring as drivers have it: contexts of their own between packets, and a word about the
// last descriptor of a packet alone, which is gone when its place is used anew.
class Ring {
 public:
  explicit Ring(std::uint32_t size) : slots_(size) {}

  // False: no room.
  bool send(std::uint32_t segments, bool context) {
    const std::uint32_t needed = segments + (context ? 1 : 0);
    if (used_ + needed > slots_.size() - 1) return false;
    for (std::uint32_t i = 0; i < needed; ++i) slots_[(tail_ + i) % slots_.size()] = {};
    tail_ += needed;
    used_ += needed;
    packets_.push_back({needed, tail_ - 1});
    return true;
  }
  void complete(std::size_t count) {
    for (; count > 0 && !packets_.empty(); --count) {
      slots_[packets_.front().last % slots_.size()].done = true;
      used_ -= packets_.front().descriptors;
      packets_.pop_front();
      ++completed;
    }
  }
  [[nodiscard]] bool done(std::uint32_t distance) const {
    return distance < slots_.size() && slots_[(tail_ - 1 - distance) % slots_.size()].done;
  }
  std::size_t completed = 0;

 private:
  struct Slot {
    bool done = false;
  };
  struct Packet {
    std::uint32_t descriptors;
    std::uint64_t last;
  };
  std::vector<Slot> slots_;
  std::deque<Packet> packets_;
  std::uint64_t tail_ = 1'000'000;
  std::uint32_t used_ = 0;
};

struct WireLoansTest : ::testing::Test {
  bool send(std::uint32_t segments, bool context = false, bool lent = true) {
    if (!ring.send(segments, context)) return false;
    loans.sent(segments);
    if (lent) loans.push(lender, number);
    ++number;
    return true;
  }
  unsigned reap() {
    return loans.reap([this](std::uint32_t distance) { return ring.done(distance); });
  }
  Lender lender;
  Ring ring{64};
  WireLoans loans{64};
  std::uint32_t number = 0;
};

TEST_F(WireLoansTest, EndsWhatTheDeviceIsDoneWith) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(send(2));
  EXPECT_EQ(reap(), 0u);
  ring.complete(1);
  EXPECT_EQ(reap(), 1u);
  EXPECT_EQ(lender.ended, (std::vector{0u}));
  ring.complete(2);
  EXPECT_EQ(reap(), 2u);
  EXPECT_EQ(lender.ended, (std::vector{0u, 1u, 2u}));
  EXPECT_FALSE(loans.any());
}

TEST_F(WireLoansTest, AContextBetweenPacketsEndsNothingEarly) {
  ASSERT_TRUE(send(2));
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(send(2, true));
  ring.complete(1);
  // The first is eight contexts farther away than is known; nothing else is done.
  EXPECT_LE(reap(), 1u);
  ring.complete(8);
  static_cast<void>(reap());
  EXPECT_EQ(lender.ended.size(), 9u);
}

TEST_F(WireLoansTest, CopiedPacketsCountAsDistance) {
  ASSERT_TRUE(send(1));
  ASSERT_TRUE(send(3, false, false));
  ASSERT_TRUE(send(1));
  ring.complete(2);
  EXPECT_EQ(reap(), 1u);
  EXPECT_EQ(lender.ended, (std::vector{0u}));
}

TEST_F(WireLoansTest, AStoppedDeviceReadsNothing) {
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(send(2));
  EXPECT_EQ(loans.end_all(), 5u);
  EXPECT_EQ(loans.popped(), loans.pushed());
}

// Any order of sending and completing: a loan never ends before its packet is done, all end in
// their order, each once, and none is left when the device stands still.
TEST_F(WireLoansTest, NeverTooEarlyAndNeverForgotten) {
  std::mt19937 random{7};
  std::vector<std::uint32_t> lent;
  for (int round = 0; round < 20'000; ++round) {
    switch (random() % 3) {
      case 0:
      case 1: {
        const bool lends = random() % 2 == 0;
        const auto mine = number;
        if (send(1 + static_cast<std::uint32_t>(random() % 5), random() % 4 == 0, lends) && lends)
          lent.push_back(mine);
        break;
      }
      default:
        ring.complete(random() % 4);
    }
    static_cast<void>(reap());
    if (!lender.ended.empty()) {
      ASSERT_LT(lender.ended.back(), ring.completed) << round;
    }
    ASSERT_TRUE(std::equal(lender.ended.begin(), lender.ended.end(), lent.begin())) << round;
  }
  EXPECT_GT(lender.ended.size(), 1000u);
  ring.complete(64);
  static_cast<void>(reap());
  EXPECT_EQ(lender.ended, lent);
}

}  // namespace
}  // namespace millrace::vswitch

#include "base/call_signal.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <limits>
#include <vector>

namespace millrace::base {
namespace {

Fd make_eventfd(int flags = EFD_NONBLOCK) {
  return Fd{::eventfd(0, flags)};
}

std::uint64_t take(const Fd& fd) {
  std::uint64_t value = 0;
  return ::read(fd.get(), &value, sizeof(value)) == sizeof(value) ? value : 0;
}

// A tenant fills its counter and makes the descriptor blocking: write(2) would now wait for ever.
Fd make_saturated() {
  auto fd = make_eventfd();
  const std::uint64_t most = std::numeric_limits<std::uint64_t>::max() - 1;
  EXPECT_EQ(::write(fd.get(), &most, sizeof(most)), static_cast<ssize_t>(sizeof(most)));
  EXPECT_EQ(::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK), 0);
  return fd;
}

class CallSignalTest : public testing::Test {
 protected:
  void SetUp() override {
    auto made = CallSignal::make();
    ASSERT_TRUE(made) << made.error().message;
    calls_ = *std::move(made);
  }
  std::unique_ptr<CallSignal> calls_;
};

TEST_F(CallSignalTest, SignalsAreSentByFlushAndEveryOneCounts) {
  const auto fd = make_eventfd();
  calls_->flush();
  for (int i = 0; i < 3; ++i) calls_->signal(fd.get());
  EXPECT_EQ(take(fd), 0u);
  calls_->flush();
  EXPECT_EQ(take(fd), 3u);
  EXPECT_EQ(calls_->sent.get(), 3u);
  EXPECT_EQ(calls_->refused.get(), 0u);
  calls_->flush();
  EXPECT_EQ(take(fd), 0u);
}

TEST_F(CallSignalTest, ASaturatedBlockingEventfdNeverBlocksUsNorOthers) {
  const auto saturated = make_saturated();
  const auto good = make_eventfd();
  for (int round = 0; round < 1000; ++round) {
    calls_->signal(saturated.get());
    calls_->signal(good.get());
    calls_->signal(saturated.get());
    calls_->flush();
  }
  EXPECT_EQ(take(good), 1000u);
}

TEST_F(CallSignalTest, ManyBatchesLoseNothing) {
  std::vector<Fd> fds;
  fds.reserve(200);
  for (int i = 0; i < 200; ++i) fds.push_back(make_eventfd(i % 2 == 0 ? EFD_NONBLOCK : 0));
  constexpr std::uint64_t rounds = 500;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    for (const auto& fd : fds) calls_->signal(fd.get());
    calls_->flush();
  }
  for (const auto& fd : fds) EXPECT_EQ(take(fd), rounds);
  EXPECT_EQ(calls_->sent.get(), rounds * fds.size());
  EXPECT_EQ(calls_->refused.get(), 0u);
}

TEST_F(CallSignalTest, AFullBatchGoesOutByItself) {
  const auto fd = make_eventfd();
  for (unsigned i = 0; i < CallSignal::batch_max + 1; ++i) calls_->signal(fd.get());
  EXPECT_EQ(take(fd), CallSignal::batch_max);
  calls_->flush();
  EXPECT_EQ(take(fd), 1u);
}

// Wants a call, `again` times more than it is asked.
class Asker final : public CallAsker {
 public:
  explicit Asker(int fd, int again = 0) : fd_{fd}, again_{again} {}
  void ask(CallSignal& calls) noexcept override {
    ++asked;
    calls.signal(fd_);
    if (again_-- > 0) calls.ask_later(*this);
  }
  int asked = 0;

 private:
  const int fd_;
  int again_;
};

TEST_F(CallSignalTest, AsksOnceARoundAndSignalsWhatIsWanted) {
  const auto fd = make_eventfd();
  Asker one{fd.get()}, other{fd.get(), 1};
  for (int i = 0; i < 3; ++i) calls_->ask_later(one);
  calls_->ask_later(other);
  calls_->ask_later(one);
  EXPECT_EQ(one.asked + other.asked, 0);
  calls_->flush();
  EXPECT_EQ(one.asked, 1);
  EXPECT_EQ(other.asked, 1);
  EXPECT_EQ(take(fd), 2u);
  calls_->flush();  // one that asks while it is asked has its turn in the next round
  EXPECT_EQ(one.asked, 1);
  EXPECT_EQ(other.asked, 2);
  EXPECT_EQ(take(fd), 1u);
  calls_->ask_later(one);
  calls_->flush();
  EXPECT_EQ(one.asked, 2);
}

TEST_F(CallSignalTest, ManyAskersFillMoreThanABatch) {
  const auto fd = make_eventfd();
  std::vector<Asker> askers(3 * CallSignal::batch_max + 1, Asker{fd.get()});
  for (int round = 0; round < 3; ++round) {
    for (auto& asker : askers) calls_->ask_later(asker);
    calls_->flush();
    EXPECT_EQ(take(fd), askers.size());
  }
}

TEST_F(CallSignalTest, ARefusedDescriptorStopsNobodyElse) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_NONBLOCK), 0);
  const Fd reader{ends[0]}, writer{ends[1]};
  const auto first = make_eventfd();
  const auto last = make_eventfd();
  calls_->signal(writer.get());  // no eventfd
  calls_->signal(first.get());
  calls_->signal(-1);
  calls_->signal(1 << 20);  // not open
  calls_->signal(last.get());
  calls_->signal(reader.get());
  calls_->flush();
  EXPECT_EQ(take(first), 1u);
  EXPECT_EQ(take(last), 1u);
  EXPECT_EQ(calls_->sent.get(), 2u);
  EXPECT_EQ(calls_->refused.get(), 4u);
}

TEST_F(CallSignalTest, ABatchOfNothingButRefusalsEnds) {
  for (unsigned i = 0; i < 3 * CallSignal::batch_max; ++i) calls_->signal(-1);
  calls_->flush();
  EXPECT_EQ(calls_->refused.get(), 3 * CallSignal::batch_max);
  const auto fd = make_eventfd();
  calls_->signal(fd.get());
  calls_->flush();
  EXPECT_EQ(take(fd), 1u);
}

}  // namespace
}  // namespace millrace::base

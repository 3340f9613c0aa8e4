#include "base/reactor_pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

namespace millrace::base {
namespace {

using namespace std::chrono_literals;

class ReactorPoolTest : public testing::Test {
 protected:
  void make(unsigned count) {
    std::vector<ReactorConfig> configs;
    for (unsigned i = 0; i < count; ++i) configs.push_back({.index = i, .spin_ns = 1'000});
    auto made = ReactorPool::make(loop_, configs);
    ASSERT_TRUE(made) << made.error().message;
    pool_ = *std::move(made);
  }
  EventLoop loop_;
  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(ReactorPoolTest, RunsThereAndIsDoneHere) {
  make(2);
  const auto control = std::this_thread::get_id();
  int done = 0;
  std::vector<unsigned> ran_on;
  ran_on.reserve(2);
  for (unsigned i = 0; i < 2; ++i) {
    auto index = std::make_shared<std::atomic<unsigned>>(99);
    pool_->post(
        i, [index](Reactor& reactor) { index->store(reactor.index()); },
        [&, index] {
          EXPECT_EQ(std::this_thread::get_id(), control);
          ran_on.push_back(index->load());
          ++done;
        });
  }
  EXPECT_EQ(done, 0);
  while (done < 2) loop_.step(100ms);
  std::sort(ran_on.begin(), ran_on.end());
  EXPECT_EQ(ran_on, (std::vector<unsigned>{0, 1}));
}

TEST_F(ReactorPoolTest, TakesAnyNumberOfCommandsInOrder) {
  make(1);
  constexpr unsigned count = 10 * Reactor::mailbox_size;
  unsigned ran = 0, in_order = 0, done = 0;
  for (unsigned i = 0; i < count; ++i) {
    pool_->post(
        0, [&, i](Reactor&) { in_order += ran++ == i ? 1u : 0u; }, [&] { ++done; });
  }
  while (done < count) loop_.step(100ms);
  EXPECT_EQ(ran, count);
  EXPECT_EQ(in_order, count);
}

TEST_F(ReactorPoolTest, PendingCommandsDoNotBlockTheOthers) {
  make(1);
  // More than a mailbox: the rest has to be sent without any command coming back.
  constexpr unsigned count = 2 * Reactor::mailbox_size;
  std::vector<Command*> waiting;
  waiting.reserve(count);
  unsigned done = 0;
  struct Pending final : Command {
    Progress run(Reactor&) noexcept override {
      held->push_back(this);
      return Progress::pending;
    }
    void done() override { ++*count; }
    std::vector<Command*>* held = nullptr;
    unsigned* count = nullptr;
  };
  for (unsigned i = 0; i < count; ++i) {
    auto command = std::make_unique<Pending>();
    command->held = &waiting;
    command->count = &done;
    pool_->post(0, std::move(command));
  }
  bool released = false;
  pool_->post(
      0,
      [&](Reactor& reactor) {
        for (auto* command : waiting) reactor.complete(*command);
      },
      [&] { released = true; });
  while (!released || done < count) loop_.step(100ms);
  EXPECT_EQ(waiting.size(), count);
}

TEST_F(ReactorPoolTest, ADoneMayPostAgain) {
  make(2);
  int left = 200;
  std::function<void(unsigned)> next = [&](unsigned reactor) {
    pool_->post(
        reactor, [](Reactor&) {},
        [&, reactor] {
          if (--left > 0) next(1 - reactor);
        });
  };
  next(0);
  while (left > 0) loop_.step(100ms);
}

TEST_F(ReactorPoolTest, TheDestructorGivesEveryCommandBack) {
  make(2);
  constexpr unsigned count = 3 * Reactor::mailbox_size;
  unsigned done = 0, again = 0;
  for (unsigned i = 0; i < count; ++i) {
    pool_->post(
        i % 2, [](Reactor&) { return Progress::pending; },
        [&, i, pool = pool_.get()] {
          ++done;
          if (i % 1000 == 0) pool->post((i + 1) % 2, [](Reactor&) {}, [&] { ++again; });
        });
  }
  pool_.reset();
  EXPECT_EQ(done, count);
  EXPECT_EQ(again, 4u);
}

TEST_F(ReactorPoolTest, PlacesWhereTheFewestAre) {
  make(3);
  EXPECT_EQ(pool_->place(), 0u);
  EXPECT_EQ(pool_->place(), 1u);
  EXPECT_EQ(pool_->place(), 2u);
  EXPECT_EQ(pool_->place(), 0u);
  pool_->unplace(2);
  EXPECT_EQ(pool_->next_place(), 2u);
  EXPECT_EQ(pool_->next_place(), 2u);  // which counts nothing
  EXPECT_EQ(pool_->place(), 2u);
}

TEST_F(ReactorPoolTest, PlacesWhereTheLeastWorkIs) {
  make(3);
  pool_->set_load(0, 0.02);  // a tenth of a core is what counts
  pool_->set_load(1, 0.8);
  pool_->set_load(2, 0.3);
  EXPECT_EQ(pool_->place(), 0u);
  EXPECT_EQ(pool_->place(), 0u);
  EXPECT_EQ(pool_->place(), 0u);
  EXPECT_EQ(pool_->place(), 2u);  // as much as what was placed on 0 may need
  EXPECT_EQ(pool_->place(), 0u);
  pool_->set_load(0, 0.0);  // they need nothing
  pool_->set_load(2, 0.0);
  EXPECT_EQ(pool_->place(), 2u);  // the fewest are there
  pool_->place_on(2);
  pool_->place_on(2);
  EXPECT_EQ(pool_->place(), 0u);
  EXPECT_EQ(pool_->load(1), 0.8);
}

TEST_F(ReactorPoolTest, AReactorThatCannotBeMadeIsOneLine) {
  const auto none = ReactorPool::make(loop_, {});
  ASSERT_FALSE(none);
  const auto bad = ReactorPool::make(loop_, {{.index = 0}, {.index = 1, .core = 8000}});
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().message, "core 8000 is not usable by this process");
}

}  // namespace
}  // namespace millrace::base

// A source that names a word to look at is visited when that word changes, and after everything
// that may have changed something else.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "base/mapping.hpp"
#include "base/reactor.hpp"

namespace millrace::base {
namespace {

// Counts up to what another thread has written into its word.
class WordPoller final : public Poller {
 public:
  bool poll() noexcept override {
    visits.fetch_add(1, std::memory_order_relaxed);
    const auto now = __atomic_load_n(&word, __ATOMIC_ACQUIRE);
    const bool any = now != taken.load(std::memory_order_relaxed);
    taken.store(now, std::memory_order_release);
    if (looks) look_at({&word, now});
    return any;
  }
  void come_near() noexcept override { near.fetch_add(1, std::memory_order_relaxed); }
  bool arm() noexcept override { return __atomic_load_n(&word, __ATOMIC_ACQUIRE) != taken.load(); }
  void disarm() noexcept override {}
  [[nodiscard]] bool may_rest() const noexcept override { return rests; }
  void push(std::uint16_t value) { __atomic_store_n(&word, value, __ATOMIC_RELEASE); }

  std::uint16_t word = 0;
  std::atomic<std::uint16_t> taken{0};
  std::atomic<std::uint64_t> visits{0}, near{0};
  bool looks = true, rests = false;
};

struct Post final : Command {
  explicit Post(std::function<Progress(Reactor&)> does) : work{std::move(does)} {}
  Progress run(Reactor& reactor) noexcept override { return work(reactor); }
  void done() override {}
  std::function<Progress(Reactor&)> work;
};

class GlanceTest : public ::testing::Test {
 protected:
  void begin(IdleMode mode) {
    auto made = Reactor::make({.core = -1, .mode = mode, .spin_ns = 1'000});
    ASSERT_TRUE(made) << made.error().message;
    reactor_ = *std::move(made);
    reactor_->start();
    every_round_.looks = false;
    run([this](Reactor& reactor) {
      reactor.add(poller_);
      if (reactor.config().mode == IdleMode::poll) reactor.add(every_round_);
      return Progress::done;
    });
  }
  void await_back(const Command& command) {
    Command* back = nullptr;
    while ((back = reactor_->take_done()) == nullptr) std::this_thread::yield();
    ASSERT_EQ(back, &command);
  }
  void run(std::function<Progress(Reactor&)> work) {
    Post command{std::move(work)};
    ASSERT_TRUE(reactor_->try_post(&command));
    await_back(command);
  }
  void pass_rounds(std::uint64_t count) {
    const auto from = every_round_.visits.load();
    while (every_round_.visits.load() < from + count) std::this_thread::yield();
  }
  // Visits of the one that looks, over many rounds in which nothing happens.
  std::uint64_t visits_in_quiet() {
    pass_rounds(10);  // what a command has stirred up is over
    const auto before = poller_.visits.load();
    pass_rounds(1000);
    return poller_.visits.load() - before;
  }
  WordPoller poller_, every_round_;
  std::unique_ptr<Reactor> reactor_;
};

TEST_F(GlanceTest, AVisitIsMadeWhenTheWordChanges) {
  begin(IdleMode::poll);
  for (std::uint16_t value = 1; value <= 200; ++value) {
    poller_.push(value);
    while (poller_.taken.load() != value) std::this_thread::yield();
  }
  EXPECT_EQ(visits_in_quiet(), 0u);
  poller_.push(0);  // any other value is news
  while (poller_.taken.load() != 0) std::this_thread::yield();
  reactor_->stop();
}

// One that is visited in every round comes before the one that looks: most news is there when that
// one's turn is next.
TEST_F(GlanceTest, TheNextOneComesNearWhereItHasNews) {
  begin(IdleMode::poll);
  run([this](Reactor& reactor) {
    reactor.remove(poller_);
    reactor.add(poller_);
    return Progress::done;
  });
  EXPECT_EQ(visits_in_quiet(), 0u);
  EXPECT_EQ(poller_.near.load(), 0u);
  std::uint64_t news = 0;
  while (poller_.near.load() == 0) {
    poller_.push(static_cast<std::uint16_t>(++news));
    while (poller_.taken.load() != static_cast<std::uint16_t>(news)) std::this_thread::yield();
  }
  EXPECT_EQ(visits_in_quiet(), 0u);
  EXPECT_LE(poller_.near.load(), news);
  reactor_->stop();
}

TEST_F(GlanceTest, ACommandVoidsIt) {
  begin(IdleMode::poll);
  EXPECT_EQ(visits_in_quiet(), 0u);
  const auto before = poller_.visits.load();
  run([](Reactor&) { return Progress::done; });
  pass_rounds(10);
  EXPECT_GT(poller_.visits.load(), before);
  // One that comes back later, too: it may have done what it was for just then.
  Post late{[](Reactor&) { return Progress::pending; }};
  ASSERT_TRUE(reactor_->try_post(&late));
  EXPECT_EQ(visits_in_quiet(), 0u);
  struct Completer final : Poller {
    bool poll() noexcept override {
      if (!go.exchange(false)) return false;
      reactor->complete(*command);
      return true;
    }
    bool arm() noexcept override { return go.load(); }
    void disarm() noexcept override {}
    std::atomic<bool> go{false};
    Reactor* reactor = nullptr;
    Command* command = nullptr;
  } completer;
  completer.command = &late;
  run([&](Reactor& reactor) {
    completer.reactor = &reactor;
    reactor.add(completer);
    return Progress::done;
  });
  EXPECT_EQ(visits_in_quiet(), 0u);
  const auto visits = poller_.visits.load();
  completer.go.store(true);
  await_back(late);
  pass_rounds(10);
  EXPECT_GT(poller_.visits.load(), visits);
  reactor_->stop();
}

TEST_F(GlanceTest, LostMemoryVoidsIt) {
  install_memory_fault_handler();
  begin(IdleMode::poll);
  EXPECT_EQ(visits_in_quiet(), 0u);
  const auto before = poller_.visits.load();
  const Fd file{::memfd_create("lost", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(file.get(), 4096), 0);
  const auto mapping = *Mapping::map(file, 0, 4096);
  ASSERT_EQ(::ftruncate(file.get(), 0), 0);
  static_cast<void>(*static_cast<volatile std::byte*>(mapping->data()));
  ASSERT_TRUE(mapping->faulted());
  pass_rounds(10);
  EXPECT_GT(poller_.visits.load(), before);
  reactor_->stop();
}

TEST_F(GlanceTest, OneThatRestsIsFound) {
  poller_.rests = true;
  begin(IdleMode::poll);
  std::this_thread::sleep_for(std::chrono::milliseconds{5});
  for (std::uint16_t value = 1; value <= 20; ++value) {
    poller_.push(value);
    while (poller_.taken.load() != value) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
  EXPECT_EQ(visits_in_quiet(), 0u);
  reactor_->stop();
}

// Each push is made right after the one before it was seen, which is where the reactor goes to
// sleep. One that is lost and the test never ends.
TEST_F(GlanceTest, NothingIsLostOverASleep) {
  begin(IdleMode::adaptive);
  for (std::uint16_t value = 1; value <= 20'000; ++value) {
    poller_.push(value);
    reactor_->wake();
    while (poller_.taken.load() != value) __builtin_ia32_pause();
  }
  reactor_->stop();
}

// What the word was may be another reactor's past.
TEST_F(GlanceTest, OneThatIsAddedIsVisited) {
  begin(IdleMode::poll);
  EXPECT_EQ(visits_in_quiet(), 0u);
  run([this](Reactor& reactor) {
    reactor.remove(poller_);
    return Progress::done;
  });
  auto other = *Reactor::make({.core = -1, .mode = IdleMode::poll});
  other->start();
  const auto before = poller_.visits.load();
  Post adds{[this](Reactor& reactor) {
    reactor.add(poller_);
    return Progress::done;
  }};
  ASSERT_TRUE(other->try_post(&adds));
  while (poller_.visits.load() == before) std::this_thread::yield();
  other->stop();
  reactor_->stop();
}

}  // namespace
}  // namespace millrace::base

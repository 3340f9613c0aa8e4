#include "base/reactor.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "base/cores.hpp"
#include "base/load_sample.hpp"

namespace millrace::base {
namespace {

void spin_until(const std::function<bool()>& done) {
  while (!done()) std::this_thread::yield();
}

// A source of work that other threads push into by counting up: a link without the contents.
class CountingPoller : public Poller {
 public:
  bool poll() noexcept override {
    polls.fetch_add(1, std::memory_order_relaxed);
    return take();
  }
  bool arm() noexcept override {
    armed.store(true, std::memory_order_relaxed);
    return pushed.load(std::memory_order_acquire) != taken.load(std::memory_order_relaxed);
  }
  void disarm() noexcept override { armed.store(false, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override { return sleep_ns; }

  bool take() noexcept {
    const auto now = pushed.load(std::memory_order_acquire);
    const bool any = now != taken.load(std::memory_order_relaxed);
    taken.store(now, std::memory_order_release);
    return any;
  }

  std::atomic<std::uint64_t> pushed{0}, taken{0}, polls{0};
  std::atomic<bool> armed{false};
  std::uint64_t sleep_ns = sleep_for_ever;
};

struct TestCommand final : Command {
  Progress run(Reactor& reactor) noexcept override {
    ran_on.store(static_cast<int>(reactor.index()));
    return work ? work(reactor) : Progress::done;
  }
  void done() override {}
  std::function<Progress(Reactor&)> work;
  std::atomic<int> ran_on{-1};
};

// Waits without giving the processor away at first: the caller wants to go on within nanoseconds.
template <class Done>
void spin_hard_until(Done done) {
  for (int i = 0; !done(); ++i) {
    if (i > 10'000) std::this_thread::yield();
  }
}

class ReactorTest : public testing::Test {
 protected:
  void make(IdleMode mode, std::uint64_t spin_ns = 1'000) {
    auto made = Reactor::make({.index = 3, .core = -1, .mode = mode, .spin_ns = spin_ns});
    ASSERT_TRUE(made) << made.error().message;
    reactor_ = *std::move(made);
  }
  // Runs `work` on the reactor and waits for it to come back.
  void on_reactor(std::function<Progress(Reactor&)> work) {
    TestCommand command;
    command.work = std::move(work);
    ASSERT_TRUE(reactor_->try_post(&command));
    Command* back = nullptr;
    spin_until([&] { return (back = reactor_->take_done()) != nullptr; });
    ASSERT_EQ(back, &command);
  }
  void add(Poller& poller) {
    on_reactor([&](Reactor& reactor) {
      reactor.add(poller);
      return Progress::done;
    });
  }
  // Ends when the reactor went to sleep again after this call.
  void await_sleep() {
    const auto before = reactor_->counters().sleeps.get();
    reactor_->wake();
    spin_until([&] { return reactor_->counters().sleeps.get() > before; });
  }
  std::unique_ptr<Reactor> reactor_;
};

TEST_F(ReactorTest, PollsItsPollersAndAccountsForIt) {
  make(IdleMode::poll);
  CountingPoller poller;
  reactor_->start();
  add(poller);
  spin_until([&] { return poller.polls.load() > 1; });  // the round of the command is over
  poller.pushed.store(1);
  spin_until([&] { return poller.taken.load() == 1; });
  const auto polls = poller.polls.load();
  spin_until([&] { return poller.polls.load() > polls + 100; });
  reactor_->stop();
  const auto& counters = reactor_->counters();
  EXPECT_EQ(counters.sleeps.get(), 0u);
  EXPECT_EQ(counters.commands.get(), 1u);
  EXPECT_GE(counters.busy_rounds.get(), 2u);
  EXPECT_GT(counters.rounds.get(), counters.busy_rounds.get());
  EXPECT_GT(counters.busy_cycles.get(), 0u);
  EXPECT_GE(counters.longest_round_cycles.get(),
            counters.busy_cycles.get() / counters.busy_rounds.get());
  EXPECT_NE(counters.cycles_start.get(), 0u);
  EXPECT_FALSE(poller.armed.load());
}

// Works for so many cycles in each visit, some of them on behalf of another.
class BusyPoller final : public Poller {
 public:
  BusyPoller(std::uint64_t own, std::uint64_t others, Poller* other)
      : own_{own}, others_{others}, other_{other} {}
  bool poll() noexcept override {
    spend(own_);
    if (other_ != nullptr) {
      const LoadSample sample{*reactor, *other_};
      spend(others_);
    }
    return own_ != 0;
  }
  bool arm() noexcept override { return false; }
  void disarm() noexcept override {}
  Reactor* reactor = nullptr;

 private:
  static void spend(std::uint64_t spent) noexcept {
    for (const auto begin = cycles(); cycles() - begin < spent;) continue;
  }
  std::uint64_t own_, others_;
  Poller* other_;
};

TEST_F(ReactorTest, KnowsWhichOfItsPollersIsBusy) {
  make(IdleMode::poll);
  CountingPoller idle;
  BusyPoller receiver{0, 0, nullptr}, light{2'000, 0, nullptr}, heavy{10'000, 20'000, &receiver};
  heavy.reactor = reactor_.get();
  reactor_->start();
  for (Poller* poller : std::initializer_list<Poller*>{&idle, &receiver, &light, &heavy}) {
    add(*poller);
  }
  const auto rounds = reactor_->counters().rounds.get();
  spin_until(
      [&] { return reactor_->counters().rounds.get() - rounds >= 200 * Reactor::measure_every; });
  reactor_->stop();
  EXPECT_EQ(idle.busy_cycles(), 0u);
  // Nothing is bounded from above but by the whole: somebody else may have had the processor.
  const std::uint64_t measured = 199 * Reactor::measure_every;
  EXPECT_GE(light.busy_cycles(), measured * 2'000);
  EXPECT_GE(heavy.busy_cycles(), measured * 10'000);
  EXPECT_GE(receiver.busy_cycles(), measured * 20'000);
}

TEST_F(ReactorTest, WorkForAnotherIsTakenOffItsOwn) {
  make(IdleMode::poll);
  BusyPoller receiver{0, 0, nullptr}, sender{1'000, 1'000'000, &receiver};
  sender.reactor = reactor_.get();
  reactor_->start();
  add(sender);
  // What somebody else's turn on the processor adds to either evens out.
  spin_until([&] {
    const auto own = sender.busy_cycles();
    return own > 0 && receiver.busy_cycles() > 10 * Reactor::measure_every * 1'000'000ull &&
           2 * own < receiver.busy_cycles();
  });
  reactor_->stop();
  EXPECT_LT(sender.busy_cycles(), receiver.busy_cycles());
}

TEST_F(ReactorTest, CommandsRunInOrderOnItsThread) {
  make(IdleMode::adaptive);
  std::array<TestCommand, 100> commands;
  std::vector<int> order;
  order.reserve(commands.size());
  for (int i = 0; i < 100; ++i) {
    auto& command = commands[static_cast<std::size_t>(i)];
    command.work = [&order, i](Reactor&) {
      order.push_back(i);
      return Progress::done;
    };
    ASSERT_TRUE(reactor_->try_post(&command));
  }
  EXPECT_EQ(reactor_->take_done(), nullptr);
  reactor_->start();
  for (auto& command : commands) {
    Command* back = nullptr;
    spin_until([&] { return (back = reactor_->take_done()) != nullptr; });
    EXPECT_EQ(back, &command);
    EXPECT_EQ(command.ran_on.load(), 3);
  }
  ASSERT_EQ(order.size(), 100u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  reactor_->stop();
}

TEST_F(ReactorTest, APendingCommandComesBackWhenItIsCompleted) {
  make(IdleMode::adaptive);
  reactor_->start();
  TestCommand pending;
  pending.work = [](Reactor&) { return Progress::pending; };
  ASSERT_TRUE(reactor_->try_post(&pending));
  on_reactor([](Reactor&) { return Progress::done; });
  EXPECT_EQ(pending.ran_on.load(), 3);
  EXPECT_EQ(reactor_->take_done(), nullptr);
  TestCommand finisher;
  finisher.work = [&](Reactor& reactor) {
    reactor.complete(pending);
    return Progress::done;
  };
  ASSERT_TRUE(reactor_->try_post(&finisher));
  Command* back = nullptr;
  spin_until([&] { return (back = reactor_->take_done()) != nullptr; });
  EXPECT_EQ(back, &pending);
  spin_until([&] { return (back = reactor_->take_done()) != nullptr; });
  EXPECT_EQ(back, &finisher);
  reactor_->stop();
}

TEST_F(ReactorTest, NeverHoldsMoreCommandsThanCanComeBack) {
  make(IdleMode::poll);
  TestCommand command;
  std::size_t posted = 0;
  while (reactor_->try_post(&command)) ++posted;
  EXPECT_EQ(posted, Reactor::mailbox_size);
  reactor_->start();
  while (posted < 4 * Reactor::mailbox_size) {
    if (reactor_->try_post(&command)) ++posted;
  }
  spin_until([&] { return reactor_->counters().commands.get() == posted; });
  EXPECT_FALSE(reactor_->try_post(&command));
  for (std::size_t i = 0; i < posted; ++i) ASSERT_EQ(reactor_->take_done(), &command);
  EXPECT_EQ(reactor_->take_done(), nullptr);
  EXPECT_TRUE(reactor_->try_post(&command));
  reactor_->stop();
}

TEST_F(ReactorTest, StopDrainsTheMailbox) {
  make(IdleMode::adaptive);
  TestCommand command;
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(reactor_->try_post(&command));
  reactor_->start();
  reactor_->stop();
  EXPECT_EQ(reactor_->counters().commands.get(), 1000u);
}

TEST_F(ReactorTest, SleepsArmedAndWakesDisarmed) {
  make(IdleMode::adaptive);
  CountingPoller poller;
  reactor_->start();
  add(poller);
  await_sleep();
  spin_until([&] { return poller.armed.load(); });
  poller.pushed.store(1);
  reactor_->wake();
  spin_until([&] { return poller.taken.load() == 1; });
  reactor_->stop();
  EXPECT_FALSE(poller.armed.load());
}

TEST_F(ReactorTest, DoesNotRunWhileItSleeps) {
  make(IdleMode::adaptive);
  CountingPoller poller;
  reactor_->start();
  add(poller);
  await_sleep();
  // The first rounds asleep may still be those that the add's wake and ours brought.
  std::uint64_t seen = 0;
  int quiet = 0;
  while (quiet < 3) {
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
    const auto now = reactor_->counters().rounds.get();
    quiet = now == seen ? quiet + 1 : 0;
    seen = now;
  }
  reactor_->stop();
}

TEST_F(ReactorTest, ABoundedSleepPollsAgainByItself) {
  make(IdleMode::adaptive);
  CountingPoller poller;
  poller.sleep_ns = 200'000;
  reactor_->start();
  add(poller);
  poller.pushed.store(1);  // and nobody wakes it
  spin_until([&] { return poller.taken.load() == 1; });
  const auto sleeps = reactor_->counters().sleeps.get();
  spin_until([&] { return reactor_->counters().sleeps.get() > sleeps + 3; });
  poller.pushed.store(2);
  spin_until([&] { return poller.taken.load() == 2; });
  reactor_->stop();
}

TEST_F(ReactorTest, AnUnreadKickWakesItEveryTime) {
  make(IdleMode::adaptive);
  const Fd kick{::eventfd(0, EFD_NONBLOCK)};
  CountingPoller poller;
  reactor_->start();
  add(poller);
  on_reactor([&](Reactor& reactor) {
    EXPECT_TRUE(reactor.watch(kick.get()));
    return Progress::done;
  });
  const std::uint64_t one = 1;
  for (std::uint64_t i = 1; i <= 2000; ++i) {
    if (i % 100 == 0) await_sleep();
    poller.pushed.store(i, std::memory_order_release);
    ASSERT_EQ(::write(kick.get(), &one, sizeof(one)), 8);
    spin_until([&] { return poller.taken.load() == i; });
  }
  std::uint64_t value = 0;
  ASSERT_EQ(::read(kick.get(), &value, sizeof(value)), 8);
  EXPECT_EQ(value, 2000u) << "somebody read the tenant's descriptor";
  on_reactor([&](Reactor& reactor) {
    reactor.unwatch(kick.get());
    EXPECT_FALSE(reactor.watch(-1));
    return Progress::done;
  });
  reactor_->stop();
}

TEST_F(ReactorTest, ALevelWatchWakesItUntilSomebodyDrains) {
  make(IdleMode::adaptive);
  const Fd event{::eventfd(0, EFD_NONBLOCK)};
  struct Drainer final : Poller {
    bool poll() noexcept override {
      std::uint64_t value = 0;
      if (::read(fd, &value, sizeof(value)) != sizeof(value)) return false;
      drained.fetch_add(value);
      return true;
    }
    bool arm() noexcept override { return false; }
    void disarm() noexcept override {}
    int fd = -1;
    std::atomic<std::uint64_t> drained{0};
  } drainer;
  drainer.fd = event.get();
  reactor_->start();
  on_reactor([&](Reactor& reactor) {
    reactor.add(drainer);
    EXPECT_TRUE(reactor.watch_level(event.get()));
    return Progress::done;
  });
  const std::uint64_t one = 1;
  for (std::uint64_t i = 1; i <= 500; ++i) {
    ASSERT_EQ(::write(event.get(), &one, sizeof(one)), 8);
    spin_until([&] { return drainer.drained.load() == i; });
  }
  reactor_->stop();
}

// A thousand sources that may rest, beside one with work in every round and one without that may
// not.
class RestingTest : public ReactorTest {
 protected:
  struct Idle final : CountingPoller {
    [[nodiscard]] bool may_rest() const noexcept override { return rests; }
    std::atomic<bool> rests{true};
  };
  struct Always final : Poller {
    bool poll() noexcept override {
      const auto begin = cycles();
      while (cycles() - begin < 2'000) continue;
      return true;
    }
    bool arm() noexcept override { return true; }
    void disarm() noexcept override {}
  };
  static constexpr std::size_t idle_count = 1000;

  void begin(IdleMode mode, bool with_work) {
    make(mode);
    reactor_->start();
    on_reactor([&](Reactor& reactor) {
      if (with_work) reactor.add(always_);
      for (auto& poller : idle_) reactor.add(poller);
      reactor.add(restless_);
      return Progress::done;
    });
  }
  // Every idle one has come to rest: in so many rounds none was visited nearly as often as the one
  // that may not.
  void await_rest() {
    for (;;) {
      std::vector<std::uint64_t> before;
      for (auto& poller : idle_) before.push_back(poller.polls.load());
      const auto rounds = restless_.polls.load();
      spin_until([&] { return restless_.polls.load() >= rounds + 1000; });
      std::uint64_t most = 0;
      for (std::size_t i = 0; i < idle_count; ++i) {
        most = std::max(most, idle_[i].polls.load() - before[i]);
      }
      if (most < (restless_.polls.load() - rounds) / 2) return;
    }
  }
  void take_off() {
    on_reactor([&](Reactor& reactor) {
      for (auto& poller : idle_) reactor.remove(poller);
      return Progress::done;
    });
  }
  std::array<Idle, idle_count> idle_;
  CountingPoller restless_;
  Always always_;
};

TEST_F(RestingTest, IdleSourcesAreLookedAtNowAndThen) {
  begin(IdleMode::adaptive, true);
  await_rest();
  std::uint64_t before = 0, after = 0;
  for (auto& poller : idle_) before += poller.polls.load();
  const auto rounds = restless_.polls.load();
  spin_until([&] { return restless_.polls.load() >= rounds + 2000; });
  const auto passed = restless_.polls.load() - rounds;
  for (auto& poller : idle_) after += poller.polls.load();
  EXPECT_GT(after - before, passed / 2) << "nobody looks at them";
  EXPECT_LT(after - before, passed * idle_count / 10) << "they do not rest";
  // Each is found all the same.
  for (std::size_t i = 0; i < idle_count; i += 37) {
    idle_[i].pushed.store(1);
    spin_until([&] { return idle_[i].taken.load() == 1; });
  }
  take_off();
  const auto polls = idle_[0].polls.load();
  on_reactor([](Reactor&) { return Progress::done; });
  EXPECT_EQ(idle_[0].polls.load(), polls);
  reactor_->stop();
}

TEST_F(RestingTest, WorkBringsThemBackToEveryRound) {
  begin(IdleMode::adaptive, true);
  await_rest();
  idle_[5].rests.store(false);
  idle_[5].pushed.store(1);
  spin_until([&] { return idle_[5].taken.load() == 1; });
  on_reactor([&](Reactor& reactor) {
    idle_[6].rests.store(false);
    reactor.stir(idle_[6]);
    return Progress::done;
  });
  const auto rounds = restless_.polls.load();
  const auto fifth = idle_[5].polls.load(), sixth = idle_[6].polls.load();
  spin_until([&] { return restless_.polls.load() >= rounds + 1000; });
  // A poll that goes on while one looks is one of the other.
  EXPECT_GE(idle_[5].polls.load() - fifth + 1, 999u);
  EXPECT_GE(idle_[6].polls.load() - sixth + 1, 999u);
  reactor_->stop();
}

TEST_F(RestingTest, SleepArmsThemAndWakingFindsThem) {
  begin(IdleMode::adaptive, false);
  std::this_thread::sleep_for(std::chrono::milliseconds{5});
  for (std::uint64_t i = 1; i <= 200; ++i) {
    if (i % 10 == 0) await_sleep();
    auto& poller = idle_[i * 4];
    poller.pushed.store(1, std::memory_order_release);
    reactor_->wake();
    spin_until([&] { return poller.taken.load() == 1; });
  }
  await_sleep();
  EXPECT_TRUE(std::any_of(idle_.begin(), idle_.end(),
                          [](const Idle& poller) { return poller.armed.load(); }));
  reactor_->stop();
  EXPECT_FALSE(idle_[0].armed.load());
}

TEST_F(RestingTest, AlsoWhereItNeverSleeps) {
  begin(IdleMode::poll, false);
  await_rest();
  for (std::size_t i = 0; i < idle_count; i += 37) {
    idle_[i].pushed.store(1);
    spin_until([&] { return idle_[i].taken.load() == 1; });
  }
  take_off();
  reactor_->stop();
}

// Each push waits for its predecessor and comes a little later after it than that one did, so that
// pushes hit every point of the way into sleep. One lost wake-up and the test never ends.
TEST_F(ReactorTest, NoWakeUpIsLostAtAnyPointOfFallingAsleep) {
  make(IdleMode::adaptive, 0);
  CountingPoller poller;
  TestCommand command;
  reactor_->start();
  add(poller);
  const auto wait_cycles = [](std::uint64_t count) {
    for (const auto start = cycles(); cycles() - start < count;) continue;
  };
  const std::uint64_t step = ns_to_cycles(1'000'000) / 100'000;  // 10 ns
  // A machine that is busy with other things covers less in the same time.
  const auto end = monotonic_ns() + 5'000'000'000;
  for (std::uint64_t i = 1; i <= 60'000 && monotonic_ns() < end; ++i) {
    wait_cycles(i % 1000 * step);
    if (i % 2 == 0) {
      poller.pushed.store(i, std::memory_order_release);
      reactor_->wake();
      spin_hard_until([&] { return poller.taken.load(std::memory_order_acquire) == i; });
    } else {
      ASSERT_TRUE(reactor_->try_post(&command));
      spin_hard_until([&] { return reactor_->take_done() != nullptr; });
    }
  }
  EXPECT_GT(reactor_->counters().sleeps.get(), 0u);
  reactor_->stop();
}

// One pusher's wake-up answers for all that were pushed before it.
TEST_F(ReactorTest, SeveralThreadsMayWakeItAtOnce) {
  make(IdleMode::adaptive, 0);
  constexpr std::uint64_t rounds = 20'000;
  std::array<CountingPoller, 2> pollers;
  reactor_->start();
  for (auto& poller : pollers) add(poller);
  std::vector<std::thread> pushers;
  pushers.reserve(pollers.size());
  for (auto& poller : pollers) {
    pushers.emplace_back([this, &poller] {
      for (std::uint64_t i = 1; i <= rounds; ++i) {
        poller.pushed.store(i, std::memory_order_release);
        reactor_->wake();
        while (poller.taken.load(std::memory_order_acquire) != i) std::this_thread::yield();
      }
    });
  }
  for (int i = 0; i < 2000; ++i) on_reactor([](Reactor&) { return Progress::done; });
  for (auto& pusher : pushers) pusher.join();
  reactor_->stop();
}

TEST_F(ReactorTest, TwoReactorsWakeEachOther) {
  make(IdleMode::adaptive, 0);
  auto other = *Reactor::make({.index = 1, .core = -1, .mode = IdleMode::adaptive, .spin_ns = 0});
  // Each passes the ball on to the other.
  struct Player final : Poller {
    bool poll() noexcept override {
      if (ball.load(std::memory_order_acquire) == 0) return false;
      const auto value = ball.exchange(0, std::memory_order_acq_rel);
      passes.fetch_add(1);
      partner->ball.store(value, std::memory_order_release);
      partner_reactor->wake();
      return true;
    }
    bool arm() noexcept override { return ball.load(std::memory_order_acquire) != 0; }
    void disarm() noexcept override {}
    std::atomic<std::uint64_t> ball{0}, passes{0};
    Player* partner = nullptr;
    Reactor* partner_reactor = nullptr;
  };
  Player here, there;
  here.partner = &there;
  here.partner_reactor = other.get();
  there.partner = &here;
  there.partner_reactor = reactor_.get();
  reactor_->add(here);  // before start() its thread is ours
  other->add(there);
  reactor_->start();
  other->start();
  here.ball.store(1);
  reactor_->wake();
  spin_until([&] { return here.passes.load() > 5000; });
  reactor_->stop();
  other->stop();
}

TEST_F(ReactorTest, PollersComeAndGoFromWithinPoll) {
  make(IdleMode::poll);
  struct Changer final : Poller {
    bool poll() noexcept override {
      ++calls;
      if (calls == 1) {
        reactor->remove(*victim);
        reactor->remove(*this);
        reactor->add(*successor);
      }
      return false;
    }
    bool arm() noexcept override { return false; }
    void disarm() noexcept override {}
    Reactor* reactor = nullptr;
    Poller *victim = nullptr, *successor = nullptr;
    int calls = 0;
  } changer;
  CountingPoller victim, successor, bystander;
  changer.reactor = reactor_.get();
  changer.victim = &victim;
  changer.successor = &successor;
  reactor_->add(changer);
  reactor_->add(victim);
  reactor_->add(bystander);
  reactor_->start();
  spin_until([&] { return successor.polls.load() > 10 && bystander.polls.load() > 10; });
  on_reactor([&](Reactor& reactor) {
    reactor.remove(bystander);
    return Progress::done;
  });
  const auto polls = bystander.polls.load();
  const auto more = successor.polls.load() + 100;
  spin_until([&] { return successor.polls.load() > more; });
  reactor_->stop();
  EXPECT_EQ(changer.calls, 1);
  EXPECT_EQ(victim.polls.load(), 0u);
  EXPECT_EQ(bystander.polls.load(), polls);
}

TEST_F(ReactorTest, CallsGoOutWithTheRoundAndBeforeACommandComesBack) {
  make(IdleMode::adaptive);
  const Fd call{::eventfd(0, EFD_NONBLOCK)};
  reactor_->start();
  for (int i = 0; i < 100; ++i) {
    on_reactor([&](Reactor& reactor) {
      reactor.calls().signal(call.get());
      return Progress::done;
    });
    std::uint64_t value = 0;
    ASSERT_EQ(::read(call.get(), &value, sizeof(value)), 8);
    EXPECT_EQ(value, 1u);
  }
  reactor_->stop();
}

TEST_F(ReactorTest, TellsByAnEventThatCommandsCameBack) {
  make(IdleMode::adaptive);
  const Fd done{::eventfd(0, 0)};
  reactor_->set_done_event(done.get());
  reactor_->start();
  TestCommand command;
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(reactor_->try_post(&command));
    std::uint64_t value = 0;
    ASSERT_EQ(::read(done.get(), &value, sizeof(value)), 8);  // blocks until it rings
    ASSERT_EQ(reactor_->take_done(), &command);
  }
  reactor_->stop();
}

TEST_F(ReactorTest, IsPinnedToTheCoreThatItWasGiven) {
  const int core = usable_cores()->back();
  reactor_ = *Reactor::make({.index = 0, .core = core});
  reactor_->start();
  int seen = -1;
  on_reactor([&](Reactor&) {
    seen = ::sched_getcpu();
    return Progress::done;
  });
  EXPECT_EQ(seen, core);
  const auto bad = Reactor::make({.index = 0, .core = 8000});
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().message, "core 8000 is not usable by this process");
  reactor_->stop();
}

TEST_F(ReactorTest, CanBeStoppedTwiceAndStartedAgain) {
  make(IdleMode::adaptive);
  reactor_->stop();
  reactor_->start();
  on_reactor([](Reactor&) { return Progress::done; });
  reactor_->stop();
  reactor_->stop();
  reactor_->start();
  on_reactor([](Reactor&) { return Progress::done; });
}

}  // namespace
}  // namespace millrace::base

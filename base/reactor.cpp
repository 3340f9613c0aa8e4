#include "base/reactor.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>

#include "base/allocation_freeze.hpp"
#include "base/clock.hpp"
#include "base/cores.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "base/mapping.hpp"

namespace millrace::base {

namespace {

constexpr std::size_t commands_a_round_max = 64;  // so that control cannot starve the queues

// How many resting pollers a round looks at: after one with work, one for so many cycles that it
// took (a look at an idle queue of many costs some sixty); after one without work, a few more.
constexpr std::uint64_t cycles_a_resting_visit = 1024;
constexpr unsigned resting_visits_busy_max = 32, resting_visits_idle = 32;
constexpr unsigned resting_visits_all = ~0u;

// Adds one to an eventfd of our own, which nobody else can saturate or make blocking.
void ring_bell(int eventfd) noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(eventfd, &one, sizeof(one));
}

// A reactor takes no signal but those that its own instructions raise.
sigset_t signals_of_others() {
  sigset_t set;
  ::sigfillset(&set);
  for (const int own : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) ::sigdelset(&set, own);
  return set;
}

}  // namespace

// The loop of the data path. Commands come first, so that what control changes is whole before
// anything is polled; calls go out last, one system call for all that the round has to tell.
void Reactor::run() noexcept {
  const AllocationFreeze freeze;
  round_cycles_ = idle_since_ = cycles();
  counters_.cycles_start.set(round_cycles_);
  for (;;) {
    const bool stopping = stopping_.load(std::memory_order_acquire);
    bool busy = drain_mailbox();
    busy |= poll_all();
    calls_->flush();
    notify_done();
    const auto now = cycles();
    account(now, busy);
    if (stopping && mailbox_.read_available() == 0) return;
    if (busy) {
      idle_since_ = now;
    } else if (config_.mode == IdleMode::adaptive && now - idle_since_ >= spin_cycles_) {
      sleep_until_work();
    }
    round_cycles_ = cycles();
  }
}

Reactor::Reactor(Key, const ReactorConfig& config) : config_{config} {}

Reactor::~Reactor() {
  stop();
}

Result<std::unique_ptr<Reactor>> Reactor::make(const ReactorConfig& config) {
  if (config.core >= 0) {
    const auto cores = usable_cores();
    if (!cores) return Unexpected{cores.error()};
    if (std::find(cores->begin(), cores->end(), config.core) == cores->end()) {
      return fail("core " + std::to_string(config.core) + " is not usable by this process");
    }
  }
  auto reactor = std::make_unique<Reactor>(Key{}, config);
  reactor->epoll_ = Fd{::epoll_create1(EPOLL_CLOEXEC)};
  reactor->wake_event_ = Fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!reactor->epoll_ || !reactor->wake_event_ || !reactor->watch(reactor->wake_event_.get())) {
    return fail_errno("cannot make a reactor's descriptors");
  }
  auto calls = CallSignal::make();
  if (!calls) return Unexpected{calls.error()};
  reactor->calls_ = *std::move(calls);
  // Twice: with a slot for each that was emptied in a round.
  reactor->pollers_.reserve(2 * pollers_max);
  reactor->resting_.reserve(2 * pollers_max);
  reactor->rest_cycles_ = ns_to_cycles(rest_after_ns);
  reactor->spin_cycles_ = ns_to_cycles(config.spin_ns);
  return reactor;
}

void Reactor::start() {
  CHECK(!thread_.joinable());
  const auto others = signals_of_others();
  sigset_t before;
  CHECK(::pthread_sigmask(SIG_SETMASK, &others, &before) == 0);
  thread_ = std::thread{[this] { run(); }};
  CHECK(::pthread_sigmask(SIG_SETMASK, &before, nullptr) == 0);
  std::array<char, 16> name{};
  std::snprintf(name.data(), name.size(), "reactor/%u", config_.index);
  ::pthread_setname_np(thread_.native_handle(), name.data());
  if (config_.core < 0) return;
  const auto pinned = pin_thread(thread_.native_handle(), config_.core);
  if (!pinned) spdlog::warn("reactor {}: {}", config_.index, pinned.error().message);
}

void Reactor::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true, std::memory_order_release);
  wake();
  thread_.join();
  stopping_.store(false, std::memory_order_relaxed);
}

bool Reactor::try_post(Command* command) noexcept {
  // Never more inside than fit on the way back, so that complete() cannot fail.
  if (posted_ == 4 * mailbox_size || !mailbox_.push(command)) return false;
  ++posted_;
  wake();
  return true;
}

Command* Reactor::take_done() noexcept {
  Command* command = nullptr;
  if (!done_.pop(command)) return nullptr;
  --posted_;
  return command;
}

void Reactor::add(Poller& poller) noexcept {
  CHECK(pollers_.size() + resting_.size() < pollers_max);
  poller.worked_at_ = round_cycles_;
  poller.glance_ = {};
  pollers_.push_back(&poller);
}

void Reactor::remove(Poller& poller) noexcept {
  // The slot is emptied and not closed: a round may be walking over it.
  auto found = std::find(pollers_.begin(), pollers_.end(), &poller);
  if (found == pollers_.end()) {
    found = std::find(resting_.begin(), resting_.end(), &poller);
    CHECK(found != resting_.end());
  }
  *found = nullptr;
  removed_ = true;
}

void Reactor::stir(Poller& poller) noexcept {
  const auto found = std::find(resting_.begin(), resting_.end(), &poller);
  if (found == resting_.end()) return;
  *found = nullptr;
  removed_ = true;
  poller.worked_at_ = round_cycles_;
  pollers_.push_back(&poller);
}

bool Reactor::watch_for(int fd, std::uint32_t events) noexcept {
  epoll_event event{};
  event.events = events;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

bool Reactor::watch(int fd) noexcept {
  return watch_for(fd, EPOLLIN | EPOLLET);
}

bool Reactor::watch_level(int fd) noexcept {
  return watch_for(fd, EPOLLIN);
}

void Reactor::unwatch(int fd) noexcept {
  epoll_event unused{};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, &unused);
}

void Reactor::complete(Command& command) noexcept {
  calls_->flush();
  visit_all_next();  // what the command did may have been to any of them
  CHECK(done_.push(&command));
  done_unsaid_ = true;
}

// Lossless against sleep_until_work(): the caller pushed, then looks whether the reactor sleeps;
// the reactor says that it sleeps, then looks whether anything was pushed. With a full fence
// between the two steps of each, one of them sees the other. Of several callers one rings.
void Reactor::wake() noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!sleeping_.load(std::memory_order_relaxed)) return;
  if (sleeping_.exchange(false, std::memory_order_seq_cst)) ring_bell(wake_event_.get());
}

bool Reactor::drain_mailbox() noexcept {
  Command* command = nullptr;
  std::size_t count = 0;
  while (count < commands_a_round_max && mailbox_.pop(command)) {
    ++count;
    if (command->run(*this) == Progress::done) complete(*command);
  }
  if (count == 0) return false;
  counters_.commands.add(count);
  visit_all_next();
  return true;
}

// What the words that pollers look at have said so far is void.
void Reactor::visit_all_next() noexcept {
  for (const auto* list : {&pollers_, &resting_}) {
    for (auto* poller : *list) {
      if (poller != nullptr) poller->glance_ = {};
    }
  }
}

bool Reactor::poll_all() noexcept {
  if (const auto faults = memory_fault_count(); faults != memory_faults_seen_) [[unlikely]] {
    memory_faults_seen_ = faults;
    visit_all_next();
  }
  bool busy = --rounds_to_measure_ == 0 ? poll_and_measure() : poll_working();
  if (!resting_.empty()) busy |= poll_resting();
  put_to_rest();
  if (removed_) drop_removed();
  return busy;
}

bool Reactor::poll_working() noexcept {
  bool busy = false;
  // By index: a poller may add another.
  for (std::size_t i = 0; i < pollers_.size(); ++i) {
    auto* poller = pollers_[i];
    if (poller == nullptr || poller->nothing_new()) continue;
    look_ahead(i + 1);
    if (!poller->visit()) continue;
    busy = true;
    // One that took itself off may be gone.
    if (pollers_[i] == poller) poller->worked_at_ = round_cycles_;
  }
  return busy;
}

// While one is visited, the word of the one after the next and what the next begins with come near.
void Reactor::look_ahead(std::size_t next) noexcept {
  if (next + 1 < pollers_.size() && pollers_[next + 1] != nullptr) {
    __builtin_prefetch(pollers_[next + 1]->glance_.word);
  }
  if (next >= pollers_.size() || pollers_[next] == nullptr) return;
  auto& poller = *pollers_[next];
  if (poller.glance_.word != nullptr && !poller.nothing_new()) poller.come_near();
}

// The same with the clock read between two pollers. What a resting one finds is not measured: it
// is at work again from then on.
bool Reactor::poll_and_measure() noexcept {
  rounds_to_measure_ = measure_every;
  measuring_ = true;
  bool busy = false;
  auto begin = cycles();
  for (std::size_t i = 0; i < pollers_.size(); ++i) {
    auto* poller = pollers_[i];
    if (poller == nullptr || poller->nothing_new()) continue;
    attributed_ = 0;
    const bool worked = poller->visit();
    const auto end = cycles();
    // One that took itself off may be gone.
    if (worked && pollers_[i] == poller) {
      poller->worked_at_ = round_cycles_;
      const auto others = std::min(attributed_, end - begin);
      attribute(*poller, end - begin - others);
    }
    busy |= worked;
    begin = end;
  }
  measuring_ = false;
  return busy;
}

// Goes on where the last round stopped. One that found work is at work again.
bool Reactor::poll_resting() noexcept {
  bool busy = false;
  const std::size_t visits = std::min<std::size_t>(resting_visits_, resting_.size());
  for (std::size_t n = 0; n < visits; ++n) {
    if (next_resting_ >= resting_.size()) next_resting_ = 0;
    const std::size_t at = next_resting_++;
    auto* poller = resting_[at];
    if (poller == nullptr || poller->nothing_new() || !poller->visit()) continue;
    busy = true;
    if (resting_[at] == poller) stir(*poller);
  }
  return busy;
}

// Looks at one poller a round.
void Reactor::put_to_rest() noexcept {
  if (++next_to_rest_ >= pollers_.size()) next_to_rest_ = 0;
  if (pollers_.empty()) return;
  auto*& poller = pollers_[next_to_rest_];
  if (poller == nullptr || round_cycles_ - poller->worked_at_ < rest_cycles_) return;
  if (!poller->may_rest()) return;
  resting_.push_back(poller);
  poller = nullptr;
  removed_ = true;
}

void Reactor::drop_removed() noexcept {
  for (auto* list : {&pollers_, &resting_}) {
    list->erase(std::remove(list->begin(), list->end(), nullptr), list->end());
  }
  removed_ = false;
}

void Reactor::notify_done() noexcept {
  if (!done_unsaid_) return;
  done_unsaid_ = false;
  if (done_event_ >= 0) ring_bell(done_event_);
}

void Reactor::account(std::uint64_t round_end, bool busy) noexcept {
  const auto spent = round_end - round_cycles_;
  counters_.rounds.add();
  if (busy) {
    counters_.busy_rounds.add();
    counters_.busy_cycles.add(spent);
  }
  if (spent > counters_.longest_round_cycles.get()) counters_.longest_round_cycles.set(spent);
  resting_visits_ = resting_visits_idle;
  if (busy) {
    const auto earned = 1 + spent / cycles_a_resting_visit;
    resting_visits_ =
        static_cast<unsigned>(std::min<std::uint64_t>(earned, resting_visits_busy_max));
  }
}

// `sleeping_` is said before the pollers are armed and not after: arm() looks into links that other
// reactors push into and then call wake(), so it is the second look of that exchange.
void Reactor::sleep_until_work() noexcept {
  discard_edges();
  sleeping_.store(true, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  auto sleep_ns = Poller::sleep_for_ever;
  const bool found = arm_all(sleep_ns);
  if (found) {
    idle_since_ = cycles();
  } else if (mailbox_.read_available() == 0 && !stopping_.load(std::memory_order_acquire)) {
    counters_.sleeps.add();
    calls_->flush();
    notify_done();
    wait(sleep_ns);
  }
  sleeping_.store(false, std::memory_order_relaxed);
  disarm_all();
  resting_visits_ = resting_visits_all;  // whoever woke us, or was found, is one of all
  // `idle_since_` stays when it slept: a wake that brings no work costs one round, not a spin.
}

bool Reactor::arm_all(std::uint64_t& sleep_ns) noexcept {
  for (const auto* list : {&pollers_, &resting_}) {
    for (auto* poller : *list) {
      if (poller->arm()) return true;
      sleep_ns = std::min(sleep_ns, poller->sleep_ns_max());
    }
  }
  return false;
}

void Reactor::disarm_all() noexcept {
  for (const auto* list : {&pollers_, &resting_}) {
    for (auto* poller : *list) poller->disarm();
  }
}

void Reactor::wait(std::uint64_t sleep_ns) noexcept {
  constexpr std::uint64_t second_ns = 1'000'000'000;
  const timespec limit{static_cast<time_t>(sleep_ns / second_ns),
                       static_cast<long>(sleep_ns % second_ns)};
  const bool bounded = sleep_ns != Poller::sleep_for_ever;
  epoll_event event{};
  if (::epoll_pwait2(epoll_.get(), &event, 1, bounded ? &limit : nullptr, nullptr) >= 0) return;
  if (errno != ENOSYS) return;
  // Linux before 5.11 counts in milliseconds.
  const auto limit_ms = std::min<std::uint64_t>(sleep_ns / 1'000'000 + 1, 1'000'000);
  ::epoll_wait(epoll_.get(), &event, 1, bounded ? static_cast<int>(limit_ms) : -1);
}

// Throws away edges from the time when every source was polled anyway: each would cost one sleep.
// Nothing is lost: whatever they told is found by arm(), which comes after.
void Reactor::discard_edges() noexcept {
  std::array<epoll_event, 256> events;
  const auto room = static_cast<int>(events.size());
  for (std::size_t left = 64; left > 0; --left) {
    if (::epoll_wait(epoll_.get(), events.data(), room, 0) < room) return;
  }
}

}  // namespace millrace::base

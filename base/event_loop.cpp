#include "base/event_loop.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <map>
#include <unordered_map>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/fd.hpp"

namespace millrace::base {

// An entry is shared by its handle and the loop's table; whoever runs its handler holds a third
// share, so that a handler may destroy its own handle. `loop` is null once the loop is gone or the
// entry is cancelled.
struct EventLoop::Watch::Entry {
  EventLoop::State* loop = nullptr;
  std::uint64_t id = 0;
  int fd = -1;
  Handler handler;
};

struct EventLoop::Timer::Entry {
  EventLoop::State* loop = nullptr;
  std::uint64_t id = 0;
  std::uint64_t deadline_ns = 0;
  std::uint64_t period_ns = 0;  // 0: once
  std::function<void()> run;
};

struct EventLoop::State {
  using Key = std::pair<std::uint64_t, std::uint64_t>;  // deadline, id

  // Events name a watch by id and not by address: an entry that a handler destroyed is not found.
  void dispatch(const epoll_event& event) {
    const auto found = watches.find(event.data.u64);
    if (found == watches.end()) return;
    const auto entry = found->second;
    entry->handler(event.events);
  }

  void run_due_timers() {
    const auto now = monotonic_ns();
    while (!timers.empty() && timers.begin()->first.first <= now) {
      const auto entry = timers.begin()->second;
      timers.erase(timers.begin());
      if (entry->period_ns != 0) {
        // A late beat is skipped, not made up for.
        entry->deadline_ns = std::max(entry->deadline_ns + entry->period_ns, now + 1);
        timers.emplace(Key{entry->deadline_ns, entry->id}, entry);
      } else {
        entry->loop = nullptr;
      }
      entry->run();
    }
  }

  // Milliseconds for epoll_wait(2), rounded up so that a timer is due when it returns.
  [[nodiscard]] int wait_ms(std::int64_t limit_ms) const {
    auto wait = limit_ms < 0 ? std::numeric_limits<std::int64_t>::max() : limit_ms;
    if (!timers.empty()) {
      const auto deadline = timers.begin()->first.first;
      const auto now = monotonic_ns();
      const auto left = deadline > now ? (deadline - now + 999'999) / 1'000'000 : 0;
      wait = std::min(wait, static_cast<std::int64_t>(left));
    } else if (limit_ms < 0) {
      return -1;
    }
    return static_cast<int>(std::min<std::int64_t>(wait, std::numeric_limits<int>::max()));
  }

  std::shared_ptr<Timer::Entry> add_timer(std::uint64_t delay, std::uint64_t period,
                                          std::function<void()> run) {
    const auto now = monotonic_ns();
    auto entry = std::make_shared<Timer::Entry>();
    entry->loop = this;
    entry->id = ++last_id;
    entry->deadline_ns = delay > std::numeric_limits<std::uint64_t>::max() - now
                             ? std::numeric_limits<std::uint64_t>::max()
                             : now + delay;
    entry->period_ns = period;
    entry->run = std::move(run);
    timers.emplace(Key{entry->deadline_ns, entry->id}, entry);
    return entry;
  }

  Fd epoll;
  bool stop = false;
  std::uint64_t last_id = 0;
  std::unordered_map<std::uint64_t, std::shared_ptr<Watch::Entry>> watches;
  std::map<Key, std::shared_ptr<Timer::Entry>> timers;
  std::vector<std::function<void()>> deferred;
};

namespace {

std::uint64_t to_ns(std::chrono::nanoseconds time) {
  return time.count() > 0 ? static_cast<std::uint64_t>(time.count()) : 0;
}

}  // namespace

EventLoop::Watch& EventLoop::Watch::operator=(Watch&& other) noexcept {
  if (this != &other) {
    reset();
    entry_ = std::move(other.entry_);
  }
  return *this;
}

EventLoop::Watch::~Watch() {
  reset();
}

void EventLoop::Watch::modify(std::uint32_t events) {
  CHECK(entry_ != nullptr);
  if (entry_->loop == nullptr) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = entry_->id;
  CHECK(::epoll_ctl(entry_->loop->epoll.get(), EPOLL_CTL_MOD, entry_->fd, &event) == 0);
}

void EventLoop::Watch::reset() {
  const auto entry = std::move(entry_);
  entry_ = nullptr;
  if (entry == nullptr || entry->loop == nullptr) return;
  auto* loop = std::exchange(entry->loop, nullptr);
  epoll_event unused{};
  ::epoll_ctl(loop->epoll.get(), EPOLL_CTL_DEL, entry->fd, &unused);
  loop->watches.erase(entry->id);
}

EventLoop::Timer& EventLoop::Timer::operator=(Timer&& other) noexcept {
  if (this != &other) {
    reset();
    entry_ = std::move(other.entry_);
  }
  return *this;
}

EventLoop::Timer::~Timer() {
  reset();
}

void EventLoop::Timer::reset() {
  const auto entry = std::move(entry_);
  entry_ = nullptr;
  if (entry == nullptr || entry->loop == nullptr) return;
  auto* loop = std::exchange(entry->loop, nullptr);
  loop->timers.erase({entry->deadline_ns, entry->id});
}

bool EventLoop::Timer::active() const {
  return entry_ != nullptr && entry_->loop != nullptr;
}

EventLoop::EventLoop() : state_{std::make_unique<State>()} {
  state_->epoll = Fd{::epoll_create1(EPOLL_CLOEXEC)};
  CHECK(state_->epoll.valid());
}

EventLoop::~EventLoop() {
  for (auto& [id, entry] : state_->watches) entry->loop = nullptr;
  for (auto& [key, entry] : state_->timers) entry->loop = nullptr;
}

Result<EventLoop::Watch> EventLoop::watch(int fd, std::uint32_t events, Handler handler) {
  auto entry = std::make_shared<Watch::Entry>();
  entry->id = ++state_->last_id;
  entry->fd = fd;
  entry->handler = std::move(handler);
  epoll_event event{};
  event.events = events;
  event.data.u64 = entry->id;
  if (::epoll_ctl(state_->epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return fail_errno("cannot watch descriptor " + std::to_string(fd));
  }
  entry->loop = state_.get();
  state_->watches.emplace(entry->id, entry);
  return Watch{std::move(entry)};
}

EventLoop::Timer EventLoop::after(std::chrono::nanoseconds delay, std::function<void()> run) {
  return Timer{state_->add_timer(to_ns(delay), 0, std::move(run))};
}

EventLoop::Timer EventLoop::every(std::chrono::nanoseconds period, std::function<void()> run) {
  const auto period_ns = std::max<std::uint64_t>(to_ns(period), 1);
  return Timer{state_->add_timer(period_ns, period_ns, std::move(run))};
}

void EventLoop::defer(std::function<void()> work) {
  state_->deferred.push_back(std::move(work));
}

void EventLoop::run() {
  while (!state_->stop) step(std::chrono::milliseconds{-1});
  state_->stop = false;
}

void EventLoop::stop() {
  state_->stop = true;
}

void EventLoop::step(std::chrono::milliseconds timeout) {
  const auto work = std::exchange(state_->deferred, {});
  std::array<epoll_event, 64> events;
  const int wait = work.empty() ? state_->wait_ms(timeout.count()) : 0;
  const int count =
      ::epoll_wait(state_->epoll.get(), events.data(), static_cast<int>(events.size()), wait);
  CHECK(count >= 0 || errno == EINTR);
  for (int i = 0; i < count; ++i) state_->dispatch(events[static_cast<std::size_t>(i)]);
  state_->run_due_timers();
  for (const auto& run : work) run();
}

}  // namespace millrace::base

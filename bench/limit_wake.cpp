#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/fd.hpp"
#include "bench/limit.hpp"
#include "bench/pin.hpp"

namespace millrace::bench {

namespace {

// What both threads see: the number of the last wake-up that was answered.
struct Shared {
  base::Fd event, epoll;
  alignas(64) std::atomic<std::uint64_t> answered{0};
};

void sleep_and_answer(Shared& shared, const std::stop_token& stop) {
  constexpr int look_ms = 100;  // at `stop`
  while (!stop.stop_requested()) {
    epoll_event event{};
    if (::epoll_wait(shared.epoll.get(), &event, 1, look_ms) <= 0) continue;
    std::uint64_t count = 0;
    if (::read(shared.event.get(), &count, sizeof count) != sizeof count) continue;
    shared.answered.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace

base::Result<LimitResult> limit_wake(const WakeLimit& limit, const LoadTime& time) {
  Shared shared;
  shared.event = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  shared.epoll = base::Fd{::epoll_create1(EPOLL_CLOEXEC)};
  epoll_event watched{};
  watched.events = EPOLLIN;
  if (!shared.event || !shared.epoll ||
      ::epoll_ctl(shared.epoll.get(), EPOLL_CTL_ADD, shared.event.get(), &watched) != 0) {
    return base::fail_errno("an eventfd and an epoll");
  }
  std::jthread sleeper{[&](const std::stop_token& stop) { sleep_and_answer(shared, stop); }};
  if (auto ok = pin(sleeper, limit.sleeper_core); !ok) return base::Unexpected{ok.error()};
  LimitResult result;
  base::FineHistogram latency;
  Pace pace{time};
  const auto gap = base::ns_to_cycles(static_cast<std::uint64_t>(limit.gap_us * 1e3));
  std::uint64_t sent = 0, sent_at = 0, next = base::cycles() + gap;
  for (;;) {
    const auto now = base::cycles();
    unsigned done = 0;
    if (sent > shared.answered.load(std::memory_order_acquire)) {
      // not yet
    } else if (sent_at != 0) {
      done = 1;
      if (pace.counts()) {
        ++result.operations;
        latency.add(base::cycles_to_ns(now - sent_at));
      }
      sent_at = 0;
      next = now + gap;
    } else if (now >= next) {
      const std::uint64_t one = 1;
      ++sent;
      sent_at = base::cycles();
      if (::write(shared.event.get(), &one, sizeof one) != sizeof one) {
        return base::fail_errno("write to an eventfd");
      }
    }
    const auto state = pace.round(done, result, latency);
    if (state == Pace::State::stalled) return base::fail("nobody woke up for 5 s");
    if (state == Pace::State::over) break;
  }
  result.latency = latency.snapshot();
  return result;
}

}  // namespace millrace::bench

#include "base/reactor_pool.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.hpp"

namespace millrace::base {

ReactorPool::ReactorPool(EventLoop& loop) : loop_{loop} {}

Result<std::unique_ptr<ReactorPool>> ReactorPool::make(EventLoop& loop,
                                                       const std::vector<ReactorConfig>& configs) {
  if (configs.empty()) return fail("at least one reactor is needed");
  auto pool = std::unique_ptr<ReactorPool>(new ReactorPool{loop});
  pool->done_event_ = Fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!pool->done_event_) return fail_errno("cannot make an eventfd");
  auto watch = loop.watch(pool->done_event_.get(), EPOLLIN,
                          [self = pool.get()](std::uint32_t) { self->drain_done(); });
  if (!watch) return Unexpected{watch.error()};
  pool->done_watch_ = *std::move(watch);
  for (const auto& config : configs) {
    auto reactor = Reactor::make(config);
    if (!reactor) return Unexpected{reactor.error()};
    (*reactor)->set_done_event(pool->done_event_.get());
    pool->reactors_.push_back(*std::move(reactor));
  }
  pool->overflow_.resize(configs.size());
  pool->inside_.resize(configs.size());
  pool->places_.resize(configs.size());
  for (auto& reactor : pool->reactors_) reactor->start();
  return pool;
}

ReactorPool::~ReactorPool() {
  done_watch_.reset();
  retry_.reset();
  for (auto& reactor : reactors_) reactor->stop();
  // No thread is left. A done() may post again; that command is given back in a further pass.
  const auto count = static_cast<unsigned>(inside_.size());
  for (bool again = true; again;) {
    again = false;
    for (unsigned i = 0; i < count; ++i) {
      take_back(i);
      auto pending = std::exchange(inside_[i], {});
      for (auto& [raw, command] : pending) command->done();
      auto unsent = std::exchange(overflow_[i], {});
      for (auto& command : unsent) command->done();
    }
    for (unsigned i = 0; i < count; ++i) {
      again = again || !inside_[i].empty() || !overflow_[i].empty();
    }
  }
}

void ReactorPool::post(unsigned reactor, std::unique_ptr<Command> command) {
  CHECK(reactor < size());
  overflow_[reactor].push_back(std::move(command));
  retry_overflow();
}

void ReactorPool::retry_overflow() {
  bool left = false;
  for (unsigned i = 0; i < size(); ++i) {
    auto& queue = overflow_[i];
    while (!queue.empty()) {
      auto* raw = queue.front().get();
      // Known before it is sent: the reactor may be done with it at once.
      inside_[i].emplace(raw, std::move(queue.front()));
      if (!reactors_[i]->try_post(raw)) {
        queue.front() = std::move(inside_[i].extract(raw).mapped());
        left = true;
        break;
      }
      queue.pop_front();
    }
  }
  if (!left) {
    retry_.reset();
  } else if (!retry_.active()) {
    retry_ = loop_.after(std::chrono::milliseconds{1}, [this] { retry_overflow(); });
  }
}

void ReactorPool::drain_done() {
  std::uint64_t count = 0;
  // Before the queues are looked at: what comes back later rings again.
  [[maybe_unused]] const auto got = ::read(done_event_.get(), &count, sizeof(count));
  for (unsigned i = 0; i < size(); ++i) take_back(i);
  retry_overflow();
}

void ReactorPool::take_back(unsigned reactor) {
  while (auto* raw = reactors_[reactor]->take_done()) {
    const auto node = inside_[reactor].extract(raw);
    CHECK(!node.empty());
    node.mapped()->done();
  }
}

unsigned ReactorPool::next_place() const {
  const auto tenths = [](const Places& places) {
    return std::lround(places.load * 10) + static_cast<long>(places.unmeasured);
  };
  const auto least =
      std::min_element(places_.begin(), places_.end(), [&tenths](const Places& a, const Places& b) {
        return std::pair{tenths(a), a.queues} < std::pair{tenths(b), b.queues};
      });
  return static_cast<unsigned>(least - places_.begin());
}

unsigned ReactorPool::place() {
  const auto reactor = next_place();
  place_on(reactor);
  return reactor;
}

void ReactorPool::place_on(unsigned reactor) {
  ++places_.at(reactor).queues;
  ++places_[reactor].unmeasured;
}

void ReactorPool::unplace(unsigned reactor) {
  CHECK(reactor < size() && places_[reactor].queues > 0);
  --places_[reactor].queues;
  if (places_[reactor].unmeasured > 0) --places_[reactor].unmeasured;
}

void ReactorPool::set_load(unsigned reactor, double load) {
  places_.at(reactor).load = std::clamp(load, 0.0, 1.0);
  places_[reactor].unmeasured = 0;
}

}  // namespace millrace::base

// LoadSample: from here to the end of the scope is work of `poller`, whoever's poll() it is in: a
// guest's receive queue is written in the visit of the queue that sent. Costs a load and a branch,
// and two readings of the clock in the few rounds that are measured. Thread: the reactor.
#pragma once

#include "base/clock.hpp"
#include "base/reactor.hpp"

namespace millrace::base {

class LoadSample {
 public:
  LoadSample(Reactor& reactor, Poller& poller) noexcept : reactor_{reactor}, poller_{poller} {
    if (reactor.measuring()) [[unlikely]]
      begin_ = cycles();
  }
  ~LoadSample() {
    if (begin_ != 0) [[unlikely]]
      reactor_.attribute(poller_, cycles() - begin_);
  }
  LoadSample(const LoadSample&) = delete;
  LoadSample& operator=(const LoadSample&) = delete;

 private:
  Reactor& reactor_;
  Poller& poller_;
  std::uint64_t begin_ = 0;
};

}  // namespace millrace::base

// RegionSwap: gives an uplink's queue other memory, and comes back when its device reads and
// writes nothing any more that it was given before. Threads: as base::Command.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "base/command.hpp"
#include "switch/ethdev_queue.hpp"

namespace millrace::vswitch {

class RegionSwap final : public base::Command, public base::Poller {
 public:
  // `queue` outlives it.
  RegionSwap(EthdevQueue& queue, std::shared_ptr<const DmaRegions> regions,
             std::function<void()> after)
      : queue_{queue}, regions_{std::move(regions)}, after_{std::move(after)} {}

  base::Progress run(base::Reactor& reactor) noexcept override {
    queue_.swap_regions(regions_);
    given_ = queue_.given();
    if (queue_.done_with(given_)) return base::Progress::done;
    reactor_ = &reactor;
    reactor.add(*this);
    return base::Progress::pending;
  }
  bool poll() noexcept override {
    if (!queue_.done_with(given_)) return false;
    reactor_->remove(*this);
    reactor_->complete(*this);  // control may destroy this at once
    return true;
  }
  bool arm() noexcept override { return queue_.done_with(given_); }
  void disarm() noexcept override {}
  void done() override { after_(); }

 private:
  EthdevQueue& queue_;
  std::shared_ptr<const DmaRegions> regions_;  // then those before; dropped on control
  std::function<void()> after_;
  base::Reactor* reactor_ = nullptr;
  EthdevQueue::Given given_;
};

}  // namespace millrace::vswitch

// Balancer: measures once a second what reactors and queues are at, tells the pool where new queues
// find room, and moves one queue at a time off a reactor that has too much.
//
// It moves only what has been out of balance for two periods on end, and the same queue once in ten
// at most. Thread: control.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "base/reactor_pool.hpp"
#include "daemon/balance.hpp"
#include "virtio/device_base.hpp"

namespace millrace::daemon {

class Balancer {
 public:
  using Visit =
      std::function<void(const char* kind, const std::string& name, virtio::DeviceBase& device)>;
  // What it needs to know of the running devices.
  struct Devices {
    std::function<void(const Visit&)> for_each;
    // Reactors that do what is no queue's: an uplink is there.
    std::function<bool(unsigned reactor)> is_shared;
    // Moves a queue; `done` in any case.
    std::function<void(const QueueLoad& queue, unsigned reactor, std::function<void()> done)> move;
  };
  // `moves`: false: it only measures. All must outlive it.
  Balancer(base::EventLoop& loop, base::ReactorPool& reactors, Devices devices, bool moves);

  [[nodiscard]] bool moves() const { return moves_; }
  // The started queues of now, with their loads in the last period.
  [[nodiscard]] std::vector<QueueLoad> queues() const;

 private:
  struct Seen {
    std::uint64_t cycles = 0;  // as of the last period
    double load = 0;
    unsigned rests = 0;  // periods in which it is not moved again
    bool there = false;
  };
  using Key = std::pair<std::string, unsigned>;  // unit and queue

  void measure();
  void measure_queues(std::uint64_t elapsed);
  void share_what_is_left();
  void balance();

  base::ReactorPool& reactors_;
  Devices devices_;
  const bool moves_;
  base::EventLoop::Timer timer_;
  std::uint64_t measured_at_;        // TSC
  std::vector<std::uint64_t> busy_;  // by reactor, as of the last period
  std::map<Key, Seen> seen_;
  unsigned busy_periods_ = 0;     // on end, in which a move was wanted
  std::shared_ptr<bool> moving_;  // an answer may come when this is gone
};

}  // namespace millrace::daemon

// StatsWorker: a balloon's statistics queue (virtio 1.2 §5.5.6.3): the driver's one buffer holds
// its figures; it gets the buffer back when newer ones are wanted.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "base/counter.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"
#include "virtio/wire/balloon.hpp"

namespace millrace::guest {

struct BalloonStats {
  // Thread: written by the queue's reactor, read by any. By tag; the driver's word for it.
  std::array<base::Counter, virtio::wire::balloon_stats_known> values;
  base::Counter updates;
  // Control wants newer ones, and wakes the reactor.
  std::atomic<bool> wanted{false};
};

class StatsWorker final : public virtio::QueueWorker {
 public:
  // Control. `stats` outlives it.
  StatsWorker(std::unique_ptr<virtio::Queue> queue, BalloonStats& stats);

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override { quiescing_ = true; }
  [[nodiscard]] bool drained() noexcept override { return !held_; }
  // Of a buffer that waits nothing but its name is kept.
  [[nodiscard]] bool memory_released() noexcept override { return true; }
  void detached(base::Reactor& reactor) noexcept override;

 private:
  // Entries of a buffer that are looked at: drivers have ten.
  static constexpr std::size_t entries_max = 32;

  [[nodiscard]] bool takes() const noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  void read() noexcept;

  BalloonStats& stats_;
  std::unique_ptr<virtio::Chain> chain_;
  bool held_ = false;
  virtio::Ticket ticket_;
  virtio::Mark before_;
  bool quiescing_ = false;
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::guest

// BalloonWorker: a balloon's queues whose buffers name pages: inflate and deflate (virtio 1.2
// §5.5.6), and the reports of free pages (§5.5.6.7).
#pragma once

#include <memory>

#include "base/counter.hpp"
#include "guest/reclaimer.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::guest {

enum class BalloonQueue : std::uint8_t { inflate, deflate, report };

// Thread: written by a queue's reactor, read by any.
struct BalloonCounters {
  base::Counter bytes;  // of pages that were named
};

class BalloonWorker final : public virtio::QueueWorker {
 public:
  static constexpr unsigned chains_a_visit = 64;

  // Control. What is referred to outlives it.
  BalloonWorker(std::unique_ptr<virtio::Queue> queue, BalloonQueue kind, Reclaimer& reclaimer,
                BalloonCounters& counters, ReclaimCounters& reclaimed);
  ~BalloonWorker() override;

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override { quiescing_ = true; }
  [[nodiscard]] bool drained() noexcept override { return is_idle(); }
  [[nodiscard]] bool memory_released() noexcept override { return is_idle(); }
  void detached(base::Reactor& reactor) noexcept override;

 private:
  [[nodiscard]] bool takes() const noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  [[nodiscard]] bool is_idle() const noexcept {
    return job_.state.load(std::memory_order_acquire) == ReclaimJob::State::idle;
  }
  [[nodiscard]] bool is_sound() const noexcept;
  void ask() noexcept;

  const BalloonQueue kind_;
  Reclaimer& reclaimer_;
  BalloonCounters& counters_;
  std::unique_ptr<virtio::Chain> chain_;
  ReclaimJob job_;
  bool quiescing_ = false;
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::guest

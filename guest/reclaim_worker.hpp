// ReclaimWorker: a queue whose buffers are worked on by the reclaimer's thread, one at a time: what
// a balloon's queues and a memory device's have in common. Its device fetches a buffer, asks, and
// gives it back once the job is done.
#pragma once

#include <memory>

#include "guest/reclaimer.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::guest {

class ReclaimWorker : public virtio::QueueWorker {
 public:
  bool arm() noexcept override;
  void disarm() noexcept override;
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override { quiescing_ = true; }
  [[nodiscard]] bool drained() noexcept override { return is_idle(); }
  [[nodiscard]] bool memory_released() noexcept override { return is_idle(); }
  void detached(base::Reactor& reactor) noexcept override;

 protected:
  // Control. `reclaimer` outlives it.
  ReclaimWorker(std::unique_ptr<virtio::Queue> queue, Reclaimer& reclaimer);

  [[nodiscard]] bool takes() const noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  [[nodiscard]] bool is_idle() const noexcept {
    return job_.state.load(std::memory_order_acquire) == ReclaimJob::State::idle;
  }
  // Hands *chain_ over, with the queue's memory as it is now.
  void ask() noexcept;

  Reclaimer& reclaimer_;
  std::unique_ptr<virtio::Chain> chain_;
  ReclaimJob job_;
  base::Reactor* reactor_ = nullptr;

 private:
  bool quiescing_ = false;
};

}  // namespace millrace::guest

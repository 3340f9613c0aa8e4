// MemWorker: the queue of a virtio-mem device (virtio 1.2 §5.15.6). The reactor fetches a request,
// once, and writes its answer; between the two it is with the reclaimer's thread, one at a time.
#pragma once

#include <memory>

#include "guest/mem_state.hpp"
#include "guest/reclaimer.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::guest {

class MemWorker final : public virtio::QueueWorker, private ReclaimTask {
 public:
  // Control. What is referred to outlives it.
  MemWorker(std::unique_ptr<virtio::Queue> queue, MemState& state, Reclaimer& reclaimer);
  ~MemWorker() override;

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
  bool step(Reclaimer& reclaimer) override;  // ReclaimTask
  [[nodiscard]] bool takes() const noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  [[nodiscard]] bool is_idle() const noexcept {
    return job_.state.load(std::memory_order_acquire) == ReclaimJob::State::idle;
  }
  void answer() noexcept;
  [[nodiscard]] bool fetch() noexcept;

  MemState& state_;
  Reclaimer& reclaimer_;
  std::unique_ptr<virtio::Chain> chain_;
  // The reclaimer's thread has them while the job is asked for.
  MemState::Request request_{};
  MemState::Response response_{};
  ReclaimJob job_;
  bool quiescing_ = false;
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::guest

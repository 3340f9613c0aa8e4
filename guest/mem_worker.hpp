// MemWorker: the queue of a virtio-mem device (virtio 1.2 §5.15.6). The reactor fetches a request,
// once, and writes its answer; between the two it is with the reclaimer's thread, one at a time.
#pragma once

#include <memory>

#include "guest/mem_state.hpp"
#include "guest/reclaim_worker.hpp"

namespace millrace::guest {

class MemWorker final : public ReclaimWorker, private ReclaimTask {
 public:
  // Control. What is referred to outlives it.
  MemWorker(std::unique_ptr<virtio::Queue> queue, MemState& state, Reclaimer& reclaimer);
  ~MemWorker() override;

  bool poll() noexcept override;

 private:
  bool step(Reclaimer& reclaimer) override;  // ReclaimTask
  void answer() noexcept;
  [[nodiscard]] bool fetch() noexcept;

  MemState& state_;
  // The reclaimer's thread has them while the job is asked for.
  MemState::Request request_{};
  MemState::Response response_{};
};

}  // namespace millrace::guest

// BalloonWorker: a balloon's queues whose buffers name pages: inflate and deflate (virtio 1.2
// §5.5.6), and the reports of free pages (§5.5.6.7).
#pragma once

#include <memory>

#include "base/counter.hpp"
#include "guest/reclaim_worker.hpp"

namespace millrace::guest {

enum class BalloonQueue : std::uint8_t { inflate, deflate, report };

// Thread: written by a queue's reactor, read by any.
struct BalloonCounters {
  base::Counter bytes;  // of pages that were named
};

class BalloonWorker final : public ReclaimWorker {
 public:
  static constexpr unsigned chains_a_visit = 64;

  // Control. What is referred to outlives it.
  BalloonWorker(std::unique_ptr<virtio::Queue> queue, BalloonQueue kind, Reclaimer& reclaimer,
                BalloonCounters& counters, ReclaimCounters& reclaimed);
  ~BalloonWorker() override;

  bool poll() noexcept override;

 private:
  [[nodiscard]] bool is_sound() const noexcept;
  void count_and_ask() noexcept;

  const BalloonQueue kind_;
  BalloonCounters& counters_;
};

}  // namespace millrace::guest

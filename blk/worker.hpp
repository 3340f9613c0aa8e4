// Worker: one started queue of a disk: takes chains, sends requests to the backend, gives them
// back.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "blk/in_flight.hpp"
#include "blk/request.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::blk {

// What all queues of a disk share. Control changes the atomics; a reactor reads each once a visit.
struct DiskState {
  Rules rules;  // constant; `bytes` as of the start
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<bool> write_through{false};  // each write is on the medium before it completes
  std::array<std::byte, virtio::wire::blk_id_size> id{};
};

class Worker final : public virtio::QueueWorker {
 public:
  // Control; all memory is taken here. `disk` and `statistics` outlive it. `segments`: as
  // advertised.
  Worker(std::unique_ptr<virtio::Queue> queue, const DiskState& disk, unsigned segments,
         std::unique_ptr<Channel> channel, QueueStatistics& statistics);

  // How many requests a queue of `size` has in flight at most.
  [[nodiscard]] static unsigned depth(std::uint32_t size);

  bool poll() noexcept override;
  void come_near() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  [[nodiscard]] bool may_rest() const noexcept override {
    return pool_.in_flight() == 0 && !channel_->pending();
  }

  [[nodiscard]] bool can_move() const noexcept override { return true; }
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override { quiescing_ = true; }
  [[nodiscard]] bool drained() noexcept override {
    return pool_.in_flight() == 0 && channel_->leaves_memory();
  }
  [[nodiscard]] bool memory_released() noexcept override {
    return !pool_.uses_other_than(queue().memory()) && channel_->memory_changed();
  }
  void detached(base::Reactor& reactor) noexcept override;

 private:
  [[nodiscard]] bool takes() noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  bool take(IoList& burst) noexcept;
  bool finish() noexcept;
  // Understands *chain_. False: the queue is poisoned.
  template <class RingType>
  bool accept(RingType& ring, IoList& burst, std::uint64_t now) noexcept;
  template <class RingType>
  void give(RingType& ring, const Completed& completed, std::uint64_t taken_cycles,
            std::uint64_t now) noexcept;
  void count(const InFlight& request, virtio::wire::BlkStatus status) noexcept;
  void look_for_lost_memory(const InFlight& request) noexcept;
  void note_disk() noexcept;
  void note_in_flight() noexcept;

  const DiskState& disk_;
  std::unique_ptr<Channel> channel_;
  QueueStatistics& statistics_;
  RequestPool pool_;
  std::vector<Range> ranges_;  // of the request being parsed
  std::unique_ptr<virtio::Chain> chain_;
  Rules rules_;
  bool write_through_ = false, flush_due_ = false;
  bool quiescing_ = false;
  base::Glance glance_;  // of the ring, where this visit emptied it
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::blk

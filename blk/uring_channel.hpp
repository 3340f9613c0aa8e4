// UringChannel: one queue's way to a file or block device through its reactor's io_uring.
//
// An operation is done in steps; each is one entry of the ring. What a step left undone (a short
// transfer, a bounce buffer smaller than the request) is the next step. A step takes the best way
// that is correct for it: the direct descriptor where offset, length and memory are aligned; the
// direct descriptor with a bounce buffer where only the memory is not; else the buffered
// descriptor. A direct transfer goes through the ring with iopoll where its device has such queues;
// one whose memory lies in one registered buffer uses that.
#pragma once

#include <memory>
#include <vector>

#include "blk/backend.hpp"
#include "blk/bounce_pool.hpp"
#include "blk/disk_pins.hpp"
#include "blk/uring.hpp"

namespace millrace::blk {

// Descriptors of one file, kept open by their backend.
struct UringTarget {
  int buffered = -1;
  int direct = -1;                                               // -1: no O_DIRECT
  std::uint32_t memory_alignment = 512, offset_alignment = 512;  // of the direct descriptor
};

// The rings that a channel may use, kept by their backend.
struct UringWays {
  const std::vector<Uring*>& rings;   // one for each reactor
  const std::vector<Uring*>& polled;  // the same with iopoll, or empty
  const PinChoice* pins;              // null: nothing is ever pinned
};

class UringChannel final : public Channel {
 public:
  // Control. `bounce` may be null where there is no direct descriptor.
  UringChannel(const UringTarget& target, const UringWays& ways, std::unique_ptr<BouncePool> bounce,
               QueueStatistics& statistics)
      : target_{target}, ways_{ways}, bounce_{std::move(bounce)}, statistics_{statistics} {}

  void attached(base::Reactor& reactor) noexcept override;
  void detached(base::Reactor& reactor) noexcept override;
  void submit(IoList& burst) noexcept override;
  bool poll(IoList& done) noexcept override;
  [[nodiscard]] bool pending() const noexcept override;
  [[nodiscard]] bool memory_changed() noexcept override { return look_at_pins(); }
  [[nodiscard]] bool leaves_memory() noexcept override { return drop_pins(); }

 private:
  enum class Start : std::uint8_t { started, no_room };
  bool pump() noexcept;
  Start start(Io& io) noexcept;
  Start start_transfer(Io& io) noexcept;
  Start start_bounced(Io& io) noexcept;
  Start start_zero_writes(Io& io) noexcept;
  // Takes the buffers up that its disk has now, and lets go of others. False: it still has others.
  bool look_at_pins() noexcept;
  bool drop_pins() noexcept;
  [[nodiscard]] int buffer_for(const Uring& ring, std::span<const iovec> vectors) noexcept;
  [[nodiscard]] bool memory_is_aligned(const Io& io) const noexcept;
  // A step is over. True: the operation is finished, with io.result as its outcome.
  bool step_done(Io& io) noexcept;
  bool transferred(Io& io) noexcept;
  bool refused(Io& io) noexcept;
  void copy_bounced(Io& io, bool to_guest, std::uint32_t bytes) noexcept;

  const UringTarget target_;
  const UringWays ways_;
  std::unique_ptr<BouncePool> bounce_;
  QueueStatistics& statistics_;
  Uring* ring_ = nullptr;
  Uring* polled_ = nullptr;  // nullptr: none
  bool polling_refused_ = false;
  UringFile buffered_, direct_, direct_polled_;
  // Registered buffers: of which memory, and where their numbers begin in each ring (-1: not
  // there).
  const PinnedMemory *pinned_ = nullptr, *not_pinned_ = nullptr;
  int first_buffer_ = -1, first_polled_ = -1;
  std::uint32_t last_slot_ = 0;
  IoList waiting_;   // not started, or with a next step
  IoList arrived_;   // home of our steps
  IoList finished_;  // done without a step
  unsigned in_ring_ = 0;
};

}  // namespace millrace::blk

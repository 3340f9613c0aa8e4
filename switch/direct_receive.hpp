// DirectReceive: a device's receive ring that is filled with a guest's own buffers, so that what
// the device writes is where the guest looks for it.
//
// It begins when the guest offers a buffer for each frame that is in the ring: those are copied
// into them as they come, and every mbuf that takes the place of one of them lies in a buffer of
// the guest's already. It ends at any time by placing nothing more there: what comes after the last
// of the guest's buffers is copied by the switch. So frames never overtake each other, and the
// device is only stopped to get buffers back that it did not fill.
//
// A guest that offers no buffer has frames wait in the device's ring, and there they are dropped.
// Threads: control while no reactor has it, then the queue's reactor.
#pragma once

#include <memory>
#include <span>

#include "base/counter.hpp"
#include "switch/counters.hpp"
#include "switch/direct_pool.hpp"
#include "switch/direct_sink.hpp"
#include "switch/dma_regions.hpp"

namespace millrace::vswitch {

class DirectReceive final : private DirectPool::Source {
 public:
  // `frame_max`: the most that the device writes. `regions`: what it reaches; may change.
  DirectReceive(DirectPool& pool, std::uint32_t frame_max,
                const std::shared_ptr<const DmaRegions>& regions);

  // `sink` has nothing taken; it is kept until untie(). With a `vlan` the wire's frames have tags,
  // which the device takes off: those of this VLAN are the guest's, without it, and others
  // nobody's. 0: all are, as they are.
  void tie(DirectSink& sink, std::uint16_t vlan) noexcept;
  // Places nothing any more; what is out stays.
  void end() noexcept { placing_ = false, may_place_ = false; }
  void untie() noexcept;
  // The device knows none of the guest's buffers any more: those that are out go back.
  void give_back() noexcept;
  // Places from now on, if it does not yet and can. `now`: TSC.
  void begin(std::uint64_t now) noexcept;
  // So many of the frames, the first ones, accept() would take in.
  [[nodiscard]] std::size_t acceptable(std::span<rte_mbuf* const> frames) const noexcept;
  // Takes in those of the frames that the guest's buffers are for, in order: the first so many. The
  // mbufs stay the caller's.
  [[nodiscard]] std::size_t accept(std::span<rte_mbuf* const> frames,
                                   PortCounters& counters) noexcept;
  // So many frames go to the guest by a copy.
  void note_copied(std::size_t count) noexcept;

  // Buffers of the guest's that are out.
  [[nodiscard]] std::size_t out() const noexcept { return sink_ == nullptr ? 0 : sink_->taken(); }
  // Frames wait for a buffer.
  [[nodiscard]] bool waits() const noexcept { return waits_; }
  // Buffers placed so far, and whether the first so many of them are out no more.
  [[nodiscard]] std::uint64_t placed() const noexcept { return placed_; }
  [[nodiscard]] bool done_with(std::uint64_t placed) const noexcept {
    return placed_ - out() >= placed;
  }

  // Any thread.
  struct Figures {
    base::Counter placing;  // 1 while it does
    // Frames that the device wrote where the guest has them, and their bytes.
    base::Counter zero_copy_packets, zero_copy_bytes;
    base::Counter untagged;  // given, and the device had taken the tag off
    // Frames that were copied, by reason.
    base::Counter copied_begun;     // it had just begun: the device had our memory for it still
    base::Counter copied_small;     // the guest's buffer does not hold the longest frame in one
                                    // piece
    base::Counter copied_few;       // the guest offers fewer buffers than the device's ring has
    base::Counter copied_unmapped;  // the device does not reach that memory (yet)
    base::Counter copied_off;       // the queue or its frames' headers do not allow it
    base::Counter copied_vlan;      // the device had left the tag on
    base::Counter no_buffer;        // looks that found a frame and no buffer to take its place
  };
  [[nodiscard]] const Figures& figures() const noexcept { return figures_; }

 private:
  bool place(rte_mbuf& mbuf) noexcept override;
  void unplace() noexcept override;
  [[nodiscard]] DirectSink::Taken take(std::byte*& at, std::uint64_t& iova) noexcept;
  void give(const rte_mbuf& mbuf, PortCounters& counters) noexcept;
  [[nodiscard]] bool put_in_place(const rte_mbuf& mbuf, std::uint32_t& bytes) noexcept;

  DirectPool& pool_;
  const std::uint32_t frame_max_;
  const std::uint64_t pause_cycles_;
  const std::shared_ptr<const DmaRegions>& regions_;
  DmaRegions::Hint hint_;
  DirectSink* sink_ = nullptr;
  std::uint16_t vlan_ = 0;  // see tie()
  bool may_place_ = false, placing_ = false, waits_ = false;
  std::uint64_t placed_ = 0, next_try_ = 0;
  base::Counter* reason_;  // why it does not place
  Figures figures_;
};

}  // namespace millrace::vswitch

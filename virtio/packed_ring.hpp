// PackedRing: the device's half of a packed virtqueue (virtio 1.2 §2.8).
//
// All shapes are checked by open(); the hot path holds pointers. Words of the guest are read once.
// After a fault nothing is taken any more; what was taken can still be given back.
//
// A position (vhost-user, "Vring base") holds two places: bits 0-14 the next available descriptor,
// bit 15 its wrap counter; bits 16-30 the next used descriptor, bit 31 its wrap counter.
// Thread: open() on control, the rest on the owning reactor.
#pragma once

#include <cstdint>
#include <vector>

#include "base/counter.hpp"
#include "base/result.hpp"
#include "virtio/chain_builder.hpp"
#include "virtio/outstanding.hpp"
#include "virtio/packed_inflight.hpp"
#include "virtio/ring.hpp"

namespace millrace::virtio {

class PackedRing {
 public:
  PackedRing() = default;  // holds nothing; not to be used

  // Starts at the available place of `setup.base`: the ring was drained when that was read, so the
  // used place is the same (and some front-ends send only the lower half). An inflight region that
  // was in use knows better, and then the base is not looked at. `inflight`: this queue's part of
  // the region, or nullptr. `memory` must outlive the ring or be replaced by set_memory().
  static base::Result<PackedRing, Fault> open(const RingSetup& setup, const GuestMemory& memory,
                                              wire::InflightPacked* inflight);

  [[nodiscard]] Take take(Chain& chain) noexcept;
  [[nodiscard]] Mark mark() const noexcept {
    return {available_.index, available_.wrap, static_cast<std::uint32_t>(resubmit_next_)};
  }
  void rewind(Mark mark) noexcept;
  void give(const Ticket& ticket, std::uint32_t bytes) noexcept;
  [[nodiscard]] bool publish() noexcept;
  [[nodiscard]] bool arm() noexcept;
  void disarm() noexcept;
  [[nodiscard]] std::uint32_t position() const noexcept;
  [[nodiscard]] Fault fault() const noexcept { return fault_; }

  void poison(Fault fault) noexcept { fault_ = fault; }
  // Finds its parts again in another snapshot. Where they are not there it poisons itself, keeps
  // the old one (which must live on) and returns false.
  [[nodiscard]] bool set_memory(const GuestMemory& memory) noexcept;
  void set_log(DirtyLog* log) noexcept { log_ = log; }
  void count_arms(base::Counter* counter) noexcept { arms_ = counter; }
  // Buffers taken since open(), those taken back not counted.
  [[nodiscard]] std::uint64_t taken() const noexcept { return outstanding_.taken(); }
  // Buffers given and not yet published (with IN_ORDER: whose turn it is).
  [[nodiscard]] std::uint32_t pending() const noexcept { return given_count_; }
  // Buffers of a predecessor that wait to be taken again.
  [[nodiscard]] std::size_t resubmits() const noexcept { return resubmit_.size() - resubmit_next_; }

 private:
  struct Given {
    Ticket ticket;
    std::uint32_t bytes;
  };
  [[nodiscard]] Fault map(const GuestMemory& memory) noexcept;
  [[nodiscard]] Fault recover(wire::InflightPacked* inflight);
  [[nodiscard]] Take fail(Fault fault) noexcept {
    fault_ = fault;
    return Take::fault;
  }
  [[nodiscard]] Take resubmit(Chain& chain) noexcept;
  [[nodiscard]] Fault read_chain(ChainBuilder& builder, std::uint16_t head_flags,
                                 Ticket& ticket) noexcept;
  void put_used(PackedPlace at, const Given& given) noexcept;
  [[nodiscard]] bool driver_wants_call(PackedPlace before) noexcept;
  void store_event(std::uint16_t offset_wrap, std::uint16_t flags) noexcept;

  wire::PackedDescriptor* ring_ = nullptr;
  const wire::EventSuppression* driver_event_ = nullptr;
  wire::EventSuppression* device_event_ = nullptr;
  const GuestMemory* memory_ = nullptr;
  DirtyLog* log_ = nullptr;
  base::Counter* arms_ = nullptr;

  std::uint32_t size_ = 0;
  PackedPlace available_;         // the next descriptor to take
  PackedPlace used_;              // the next used descriptor to write
  std::uint32_t held_slots_ = 0;  // between the two
  bool event_index_ = false, indirect_ = false, notify_off_ = false;
  Fault fault_ = Fault::none;
  ChainHints hints_;
  Outstanding outstanding_;
  PackedInflight inflight_;
  std::vector<Given> given_;  // not yet published
  std::uint32_t given_count_ = 0;
  std::vector<wire::PackedDescriptor> taken_;  // the chain being taken, for the inflight region
  std::uint32_t taken_count_ = 0;
  std::vector<PackedResubmit> resubmit_;
  std::size_t resubmit_next_ = 0;
  std::uint64_t ring_guest_ = 0, event_guest_ = 0;  // guest addresses, for the log
  RingSetup setup_;
};

static_assert(Ring<PackedRing>);

}  // namespace millrace::virtio

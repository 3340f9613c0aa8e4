// MemState: what a virtio-mem device (virtio 1.2 §5.15) is: its region, which blocks of it are
// plugged, how much the guest shall have. Control says where the region lies and how much is
// wanted; the reclaimer's thread answers the driver's requests, which take memory away. A lock is
// between the two; no reactor takes it.
//
// What the driver did outlives this process, in a record that its front-end holds: every request is
// in the record before its answer is in the ring. A process that was killed in between is asked the
// same again by its successor, who knows from the record that it is done.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/counter.hpp"
#include "guest/mem_blocks.hpp"
#include "guest/reclaimer.hpp"
#include "virtio/kept_area.hpp"

namespace millrace::guest {

class MemState {
 public:
  using Request = virtio::wire::MemRequest;
  using Response = virtio::wire::MemResponse;
  using Config = virtio::wire::MemConfig;

  // Memory that is given back in one go: the reclaimer has other guests too.
  static constexpr std::uint64_t step_size = 128 << 20;

  // `requested`: bytes, as the configuration says.
  explicit MemState(std::uint64_t requested) : configured_{requested}, requested_{requested} {}

  // --- Control ---
  // Fails on what is no region, and on another one while blocks of this one are plugged.
  base::Result<void> set_place(const MemPlace& place);
  // The guest and its memory are gone.
  void forget();
  // How much the guest shall have. Answers whether that is news. Fails on what is no multiple of
  // the blocks, and on more than the region.
  base::Result<bool> set_requested(std::uint64_t bytes);
  // Takes a record up that is of this region, unless the device has gone on already; keeps its own
  // there from now on. nullptr: nowhere. Answers whether the configuration is another now.
  bool set_kept(std::shared_ptr<virtio::KeptArea> area);
  [[nodiscard]] Config config() const;
  // Bytes that the guest shall have, as was said; its region may be smaller.
  [[nodiscard]] std::uint64_t requested() const;

  // --- The reclaimer's thread, and nobody else meanwhile ---
  // One piece of the work for a request; nothing: there is more to do. `memory`: the guest's.
  std::optional<Response> step(const Request& request, const virtio::GuestMemory& memory,
                               Reclaimer& reclaimer);

  // Thread: written by the reclaimer's, read by any.
  struct Counters {
    base::Counter plugged, unplugged;  // requests that were done
    base::Counter refused;             // and that were not: more than is wanted, or busy
    base::Counter wrong;               // that make no sense
  } counters;
  ReclaimCounters reclaimed;

 private:
  struct Removal {
    std::uint64_t next, end;  // addresses
  };
  [[nodiscard]] Response begin(const Request& request, const virtio::GuestMemory& memory,
                               Reclaimer& reclaimer);
  Response plug(const Request& request);
  Response begin_removal(const MemPlace& what, const virtio::GuestMemory& memory,
                         Reclaimer& reclaimer);
  Response finish(const Request& request);
  [[nodiscard]] bool is_done_before(const Request& request);
  [[nodiscard]] std::uint64_t effective() const;
  void keep();

  mutable std::mutex mutex_;
  MemBlocks blocks_;
  std::uint64_t configured_, requested_;  // bytes
  std::shared_ptr<virtio::KeptArea> kept_;
  Request last_{};         // that changed something
  bool restored_ = false;  // from a record, and no request came since
  bool untouched_ = true;  // no request came since there is a region
  // Of the reclaimer's thread: memory that a request takes away.
  std::optional<Removal> removal_;
};

}  // namespace millrace::guest

// Queue: a started virtqueue as its reactor holds it: the ring, the memory, the log and the
// descriptors that wake and call. QueueWorker is the device's code around it.
//
// Control makes both (all allocation happens there) and hands them to the owning reactor by
// command; from attach() to the last word of detach() only that reactor touches them.
#pragma once

#include <cstdint>
#include <memory>
#include <variant>

#include "base/counter.hpp"
#include "base/fd.hpp"
#include "base/mapping.hpp"
#include "base/poller.hpp"
#include "base/reactor.hpp"
#include "virtio/device.hpp"
#include "virtio/packed_ring.hpp"
#include "virtio/split_ring.hpp"

namespace millrace::virtio {

struct QueueCounters {
  base::Counter kicks_armed;  // times notifications were turned on
  base::Counter calls;        // calls sent to the driver
  base::Counter calls_suppressed;
  base::Counter chains;  // buffers taken
  base::Counter faults;  // 1 once poisoned
};

// Tells control of a poisoned queue, or, with `fault` none, that it is taken off its reactor.
class FaultNotice : public base::Command {
 public:
  Fault fault = Fault::none;
};

class Queue final : private base::CallAsker {
 public:
  // Control. Opens the ring in `start.memory`; a ring that does not fit is an error in one line.
  static base::Result<std::unique_ptr<Queue>> open(QueueStart start);

  // --- owning reactor ---
  // Calls `body(ring)` with the SplitRing or PackedRing: once per burst.
  template <class Body>
  decltype(auto) with_ring(Body&& body) {
    return std::visit(static_cast<Body&&>(body), ring_);
  }
  // Publishes what was given. At the end of the round `calls` asks the driver whether it wants a
  // call, for all that was published until then, and signals it. Counts calls and, as of this
  // moment, the chains taken; arming counts itself.
  void publish_and_call(base::CallSignal& calls) noexcept;
  // For a device that may wait before it calls: the driver is asked at once. True: it wants a call.
  [[nodiscard]] bool publish() noexcept;
  void call(base::CallSignal& calls) noexcept;
  [[nodiscard]] bool enabled() const noexcept { return enabled_; }
  [[nodiscard]] Fault fault() const noexcept;
  // Poisons the queue: nothing is taken any more; the error eventfd is signalled; control is told.
  void poison(Fault fault, base::CallSignal& calls) noexcept;
  [[nodiscard]] const GuestMemory& memory() const noexcept { return *memory_; }
  // Asks at the end of a visit whether the front-end took its memory away (SIGBUS) and poisons the
  // queue if so; true then. One relaxed load when nothing happened anywhere.
  bool check_memory(base::CallSignal& calls) noexcept {
    const auto count = base::memory_fault_count();
    if (count == memory_faults_seen_) [[likely]]
      return false;
    memory_faults_seen_ = count;
    return find_lost_memory(calls);
  }
  // Marks guest memory as written, when a log is set. Call after the write.
  void wrote(const Segment& segment, std::uint32_t bytes) noexcept {
    if (log_ != nullptr) log_->mark(segment.guest_address, bytes);
  }
  [[nodiscard]] bool logging() const noexcept { return log_ != nullptr; }
  [[nodiscard]] bool has_kick() const noexcept { return kick_.valid(); }

  // What follows returns in its argument what control shall drop.
  void swap_memory(std::shared_ptr<const GuestMemory>& memory, base::CallSignal& calls) noexcept;
  void swap_log(std::shared_ptr<DirtyLog>& log) noexcept;

  [[nodiscard]] unsigned index() const noexcept { return index_; }
  [[nodiscard]] std::uint64_t features() const noexcept { return features_; }
  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }
  [[nodiscard]] bool packed() const noexcept { return ring_.index() == 1; }
  // A successor is told which buffers were taken; else it goes on behind the last used one.
  [[nodiscard]] bool tracked() const noexcept { return inflight_ != nullptr; }
  // For GET_VRING_BASE.
  [[nodiscard]] std::uint32_t position() const noexcept;
  QueueCounters counters;

 private:
  friend class DeviceBase;
  Queue() = default;
  void ask(base::CallSignal& calls) noexcept override;
  [[nodiscard]] base::Result<void, Fault> open_ring(const RingSetup& setup);
  [[nodiscard]] bool lost_memory() const noexcept;
  bool find_lost_memory(base::CallSignal& calls) noexcept;
  unsigned index_ = 0;
  std::uint32_t size_ = 0;
  std::uint64_t features_ = 0;
  bool enabled_ = false;
  Fault poison_ = Fault::none;
  std::uint64_t memory_faults_seen_ = 0;
  std::shared_ptr<const GuestMemory> memory_;
  std::shared_ptr<const GuestMemory> ring_memory_;  // the one that the ring could not leave
  std::shared_ptr<DirtyLog> log_;
  std::shared_ptr<InflightRegion> inflight_;
  base::Fd kick_, call_, error_;
  std::variant<SplitRing, PackedRing> ring_;
  FaultNotice* fault_notice_ = nullptr;  // pending; completing it tells control
  base::Reactor* reactor_ = nullptr;
};

// The device's half of one started queue. Thread: the owning reactor, unless said otherwise.
class QueueWorker : public base::Poller {
 public:
  explicit QueueWorker(std::unique_ptr<Queue> queue) : queue_{std::move(queue)} {}
  [[nodiscard]] Queue& queue() noexcept { return *queue_; }
  [[nodiscard]] const Queue& queue() const noexcept { return *queue_; }

  // A queue without a kick descriptor is looked at every millisecond.
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override {
    const bool watched = queue_->has_kick() || !queue_->enabled();
    return watched || queue_->fault() != Fault::none ? sleep_for_ever : 1'000'000;
  }

  // Whether another reactor may take this queue over while it is in use: it is then quiesced,
  // drained and detached here, and attached there, where it goes on. Thread: any.
  [[nodiscard]] virtual bool can_move() const noexcept { return false; }

  // The reactor now owns this worker. Called after it was added as a poller; queue().enabled() says
  // whether it may take at once. Ends what quiesce() began, where it came from another reactor.
  virtual void attached(base::Reactor& reactor) noexcept = 0;
  // Enabled or disabled (SET_VRING_ENABLE), already stored in queue().
  virtual void enabled_changed(bool enabled) noexcept = 0;
  // Take nothing more. What is in flight still completes.
  virtual void quiesce() noexcept = 0;
  // After quiesce(): true when nothing is in flight. Polled by DeviceBase's pending command.
  [[nodiscard]] virtual bool drained() noexcept = 0;
  // Memory changes: called with the new snapshot already in queue(). Returns true when nothing in
  // flight refers to the old one (a net worker: always, between visits).
  [[nodiscard]] virtual bool memory_released() noexcept = 0;
  // Last call on the reactor. What was given is published before it.
  virtual void detached(base::Reactor& reactor) noexcept = 0;

 private:
  std::unique_ptr<Queue> queue_;
};

}  // namespace millrace::virtio

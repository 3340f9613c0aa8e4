// What the switch does while a queue goes from one reactor to another, so that no frame is lost and
// none of a flow overtakes another.
//
// An endpoint (receive queue) moves in steps, each of which every reactor takes in its own round:
//  1. The new owner's table says that frames may come: they go into a Waiting port.
//  2. Each shard's table says that new frames go to the new owner. The last of them to know it ends
//     the step; what any had sent to the old owner before is in the links by then.
//  3. The old owner takes in all of its links and delivers it; then the queue leaves.
//  4. The queue arrives, and the new owner takes in its links; what waited is delivered first, then
//     what comes is passed on.
//  5. Control makes tables without the Waiting port.
// Flooded frames name no endpoint: the number of their sender's table tells whether the old or the
// new owner is meant (Endpoint::owner_at).
//
// A sender (transmit queue) leaves when what its reactor sent before has been delivered.
// Threads: made and dropped by control; used by the two reactors, one after the other.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "base/handover.hpp"
#include "switch/fabric.hpp"
#include "switch/link.hpp"
#include "switch/shard.hpp"

namespace millrace::vswitch {

// Keeps copies of what it is given until it knows for whom. Bounded like a link: what finds no room
// is dropped and counted. Thread: the new owner.
class WaitingPort final : public Port {
 public:
  explicit WaitingPort(PortCounters& counters);
  void deliver(std::span<const Packet* const> packets) noexcept override;
  // Delivers what waited to `port`, and everything else from now on.
  void release(Port& port) noexcept;

 private:
  PortCounters& counters_;
  ParcelPool pool_;
  std::vector<Parcel*> parcels_;  // its room is taken when it is made
  Port* port_ = nullptr;
};

class EndpointMove final : public base::Handover {
 public:
  // `reactor`: the old owner's. `counters`: of the endpoint's port on the new owner's.
  EndpointMove(Shard& old_owner, Shard& new_owner, base::Reactor& reactor, Port& port,
               PortCounters& counters, unsigned shards)
      : old_owner_{old_owner},
        new_owner_{new_owner},
        reactor_{reactor},
        port_{port},
        waiting_{counters},
        left_{shards} {}

  [[nodiscard]] Port& waiting() noexcept { return waiting_; }
  // Step 2, on each shard's reactor once its table is swapped.
  void redirected() noexcept {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) reactor_.wake();
  }

  [[nodiscard]] bool may_pause() noexcept override {
    if (left_.load(std::memory_order_acquire) != 0) return false;
    old_owner_.drain();
    return true;
  }
  // What was flooded before step 2 is taken in while the table still tells that the old owner has
  // delivered it here.
  void arrived() noexcept override {
    new_owner_.drain();
    waiting_.release(port_);
  }

 private:
  Shard& old_owner_;
  Shard& new_owner_;
  base::Reactor& reactor_;
  Port& port_;
  WaitingPort waiting_;
  std::atomic<unsigned> left_;  // shards that may still send to the old owner
};

class SenderMove final : public base::Handover {
 public:
  explicit SenderMove(Shard& shard) : shard_{shard} {}
  [[nodiscard]] bool may_leave() noexcept override {
    if (!noted_) shard_.note_sent(sent_);
    noted_ = true;
    return shard_.delivered(sent_);
  }

 private:
  Shard& shard_;
  std::array<std::uint64_t, Fabric::reactors_max> sent_{};  // by reactor
  bool noted_ = false;
};

}  // namespace millrace::vswitch

// Loans: the buffers of a transmit queue whose bytes a device still reads. The queue's worker does
// not give them back at the end of its visit; they come back when their last holder releases them.
//
// At most a quarter of the ring is lent at a time; what comes then is copied. A queue whose
// successor is told which buffers were taken (it has an inflight region) gives each back when it
// comes: a device that is slow or stuck leaves the driver room. Others keep the order in which
// buffers were taken, because a successor goes on behind the last one that was used: all that was
// taken after a loan waits for it. (With IN_ORDER the ring itself has it so.) Memory is allocated
// by the constructor. Thread: the queue's reactor.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "switch/packet.hpp"
#include "virtio/queue.hpp"

namespace millrace::net {

class Loans final : public vswitch::Completion {
 public:
  // Control. `queue` must outlive it.
  explicit Loans(virtio::Queue& queue);

  // A visit begins, or goes on with packets of these tokens: the token of a packet is the place of
  // its ticket. Valid until end_visit().
  void begin_visit(std::span<const virtio::Ticket> tickets) noexcept { tickets_ = tickets; }
  // Whether the buffers of this visit are given by end_visit(): some are lent, or have to wait for
  // earlier ones that are. Otherwise all of them may be given at once, past this.
  [[nodiscard]] bool concern_visit() const noexcept { return lent_ != 0 || first_ != next_; }
  // Gives what was taken in this visit, but what is lent or has to wait. Answers how many buffers
  // were given since it was asked last.
  [[nodiscard]] std::size_t end_visit(std::span<const virtio::Ticket> tickets) noexcept;

  [[nodiscard]] std::uint32_t hold(std::uint32_t token) noexcept override;
  void release(std::uint32_t receipt) noexcept override;

  // Buffers that are lent, and those that came back and were not given yet. While there are none,
  // nothing waits.
  [[nodiscard]] std::size_t out() const noexcept { return slots_.size() - free_.size(); }
  // Buffers given and not published since the last call of this.
  [[nodiscard]] std::size_t take_returned() noexcept { return std::exchange(returned_, 0); }
  [[nodiscard]] bool returned() const noexcept { return returned_ != 0; }

 private:
  struct Slot {
    virtio::Ticket ticket;
    std::uint32_t holders = 0;
  };
  // A buffer whose turn has not come.
  struct Waiting {
    virtio::Ticket ticket;
    std::uint32_t slot = 0;  // not_lent: it waits for others
  };
  static constexpr std::uint32_t not_lent = ~0u;
  [[nodiscard]] bool holds(std::size_t token) const noexcept { return (lent_ >> token & 1) != 0; }
  [[nodiscard]] bool keeps_order() const noexcept { return !waiting_.empty(); }
  [[nodiscard]] Waiting& waiting(std::size_t at) noexcept {
    return waiting_[at & (waiting_.size() - 1)];
  }
  // Gives those whose turn it is.
  void give_in_turn() noexcept;

  virtio::Queue& queue_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;  // of slots_; its memory is reserved
  std::vector<Waiting> waiting_;     // a ring, in the order of their taking; empty: none is kept
  std::size_t first_ = 0, next_ = 0;
  std::span<const virtio::Ticket> tickets_;
  std::uint64_t lent_ = 0;  // in this visit, a bit for each token
  std::array<std::uint32_t, vswitch::burst_max> slot_of_{};
  std::size_t returned_ = 0;
};

}  // namespace millrace::net

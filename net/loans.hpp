// Loans: the buffers of a transmit queue whose bytes a device still reads. The queue's worker does
// not give them back at the end of its visit; they come back when their last holder releases them.
//
// At most a quarter of the ring is lent at a time, so a device that is slow or stuck leaves the
// driver room: what comes then is copied. Not for rings with IN_ORDER, where all that follows would
// have to wait, too. Memory is allocated by the constructor. Thread: the queue's reactor.
#pragma once

#include <array>
#include <cstdint>
#include <span>
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
  // Whether anything of this visit was lent; then a ticket that holds() is not to be given.
  [[nodiscard]] bool any_in_visit() const noexcept { return lent_ != 0; }
  [[nodiscard]] bool holds(std::size_t token) const noexcept { return (lent_ >> token & 1) != 0; }
  // Whatever came back meanwhile is given.
  void end_visit() noexcept;

  [[nodiscard]] std::uint32_t hold(std::uint32_t token) noexcept override;
  void release(std::uint32_t receipt) noexcept override;

  // Buffers that are lent.
  [[nodiscard]] std::size_t out() const noexcept { return slots_.size() - free_.size(); }
  // Buffers given and not published since the last call of this.
  [[nodiscard]] std::size_t take_returned() noexcept { return std::exchange(returned_, 0); }
  [[nodiscard]] bool returned() const noexcept { return returned_ != 0; }

 private:
  struct Slot {
    virtio::Ticket ticket;
    std::uint32_t holders = 0;
  };
  virtio::Queue& queue_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;  // of slots_; its memory is reserved
  std::span<const virtio::Ticket> tickets_;
  std::uint64_t lent_ = 0;  // in this visit, a bit for each token
  std::array<std::uint32_t, vswitch::burst_max> slot_of_{};
  std::size_t returned_ = 0;
};

}  // namespace millrace::net

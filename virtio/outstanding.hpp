// Outstanding: the buffers of one queue that the device has: which are held, in which order they
// were taken, and, with IN_ORDER, which completions wait for an earlier one.
//
// Memory is allocated by open(); nothing afterwards. Thread: the owning reactor.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "base/check.hpp"
#include "virtio/chain.hpp"

namespace millrace::virtio {

class Outstanding {
 public:
  // Control. `size`: of the queue; ids are below it.
  void open(std::uint32_t size, bool in_order) {
    const std::uint32_t capacity = std::bit_ceil(size);
    mask_ = capacity - 1;
    held_.assign((size + 63) / 64, 0);
    held_count_ = 0;
    order_.resize(capacity);
    in_order_ = in_order;
    if (in_order) {
      sequence_of_.assign(size, 0);
      completions_.assign(capacity, {});
    }
  }

  [[nodiscard]] bool holds(std::uint32_t id) const noexcept {
    return ((held_[id / 64] >> (id % 64)) & 1) != 0;
  }
  [[nodiscard]] bool holds_any() const noexcept { return held_count_ != 0; }
  // From here on the id may not be published again by the driver.
  void hold(std::uint32_t id) noexcept {
    if (holds(id)) return;
    held_[id / 64] |= 1ull << (id % 64);
    ++held_count_;
  }
  void release(std::uint32_t id) noexcept {
    if (!holds(id)) return;
    held_[id / 64] &= ~(1ull << (id % 64));
    --held_count_;
  }

  // A buffer that is held already is handed out.
  void push(const Ticket& ticket) noexcept {
    order_[taken_ & mask_] = ticket;
    if (in_order_) {
      sequence_of_[ticket.id()] = static_cast<std::uint16_t>(taken_ & mask_);
      completions_[taken_ & mask_].done = false;
    }
    ++taken_;
  }
  // Of one that is held: it is completed at once. Not with IN_ORDER.
  void let_go(const Ticket& ticket) noexcept {
    CHECK(holds(ticket.id()));
    release(ticket.id());
  }
  // So many were handed out that are not held: they are completed at once, and none of them will be
  // taken back. Not with IN_ORDER.
  void pass(std::uint64_t count) noexcept { taken_ += count; }
  // The one handed out last is taken back. It stays held.
  [[nodiscard]] const Ticket& pop() noexcept {
    --taken_;
    return order_[taken_ & mask_];
  }

  // Calls `emit(ticket, bytes)` for every completion whose turn it is: this one, or, with IN_ORDER,
  // it and those after it that waited for it, or none.
  template <class Emit>
  [[gnu::always_inline]] void complete(const Ticket& ticket, std::uint32_t bytes,
                                       const Emit& emit) noexcept {
    CHECK(holds(ticket.id()));
    if (!in_order_) {
      emit(ticket, bytes);
      return;
    }
    Completion& own = completions_[sequence_of_[ticket.id()]];
    CHECK(!own.done);
    own = {bytes, true};
    for (; first_ != taken_ && completions_[first_ & mask_].done; ++first_) {
      Completion& next = completions_[first_ & mask_];
      next.done = false;
      emit(order_[first_ & mask_], next.bytes);
    }
  }

  [[nodiscard]] bool in_order() const noexcept { return in_order_; }
  // Buffers handed out since open(); what was taken back does not count. Wraps.
  [[nodiscard]] std::uint64_t taken() const noexcept { return taken_; }

 private:
  struct Completion {
    std::uint32_t bytes = 0;
    bool done = false;
  };
  std::vector<std::uint64_t> held_;         // a bit for each id
  std::uint32_t held_count_ = 0;            // of them
  std::vector<Ticket> order_;               // by sequence: what was taken
  std::vector<std::uint16_t> sequence_of_;  // by id, IN_ORDER only
  std::vector<Completion> completions_;     // by sequence, IN_ORDER only
  std::uint64_t taken_ = 0, first_ = 0;     // sequence of the next take; of the oldest not given
  std::uint32_t mask_ = 0;
  bool in_order_ = false;
};

}  // namespace millrace::virtio

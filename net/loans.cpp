#include "net/loans.hpp"

#include <algorithm>
#include <bit>

namespace millrace::net {

Loans::Loans(virtio::Queue& queue) : queue_{queue}, slots_(std::max(1u, queue.size() / 4)) {
  free_.reserve(slots_.size());
  for (std::size_t i = slots_.size(); i-- > 0;) free_.push_back(static_cast<std::uint32_t>(i));
  if (!queue.tracked()) waiting_.resize(std::bit_ceil(queue.size()));
}

std::uint32_t Loans::hold(std::uint32_t token) noexcept {
  CHECK(token < tickets_.size());
  if (holds(token)) {
    ++slots_[slot_of_[token]].holders;
    return slot_of_[token];
  }
  if (free_.empty()) return refused;
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  // One holder is the visit itself: a packet's first part may be over before its next is sent.
  slots_[slot] = {tickets_[token], 2};
  slot_of_[token] = slot;
  lent_ |= std::uint64_t{1} << token;
  return slot;
}

void Loans::release(std::uint32_t receipt) noexcept {
  Slot& slot = slots_[receipt];
  CHECK(slot.holders > 0);
  if (--slot.holders > 0) return;
  if (keeps_order()) return give_in_turn();
  queue_.with_ring([&slot](auto& ring) { ring.give(slot.ticket, 0); });
  free_.push_back(receipt);
  ++returned_;
}

void Loans::give_in_turn() noexcept {
  queue_.with_ring([this](auto& ring) {
    for (; first_ != next_; ++first_) {
      const auto [ticket, slot] = waiting(first_);
      if (slot != not_lent) {
        if (slots_[slot].holders > 0) return;
        free_.push_back(slot);
      }
      ring.give(ticket, 0);
      ++returned_;
    }
  });
}

std::size_t Loans::end_visit(std::span<const virtio::Ticket> tickets) noexcept {
  if (keeps_order()) {
    for (std::size_t i = 0; i < tickets.size(); ++i) {
      CHECK(next_ - first_ < waiting_.size());
      waiting(next_++) = {tickets[i], holds(i) ? slot_of_[i] : not_lent};
    }
  } else {
    queue_.with_ring([&](auto& ring) {
      for (std::size_t i = 0; i < tickets.size(); ++i) {
        if (!holds(i)) ring.give(tickets[i], 0), ++returned_;
      }
    });
  }
  for (std::uint64_t left = std::exchange(lent_, 0); left != 0; left &= left - 1) {
    release(slot_of_[static_cast<unsigned>(std::countr_zero(left))]);
  }
  if (keeps_order()) give_in_turn();
  tickets_ = {};
  return take_returned();
}

}  // namespace millrace::net

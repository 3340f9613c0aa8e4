// WireLoans: payloads that a device still reads: who lent them, and how far its transmit ring has
// to come until they are free.
//
// A device takes the descriptors of a ring in their order, so a payload is free when the last
// descriptor of its packet, or any later one, is done. The driver says whether the descriptor at a
// distance from its newest is done; how many of its own it puts between packets (contexts of an
// offload) it does not say. So distances are counted without those: what is asked for lies at or
// behind the descriptor in question, never before it. Nothing here depends on when the driver frees
// the mbufs of what it sent, which may be a whole ring later.
//
// Memory is allocated by the constructor. Thread: the reactor of the queue.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "base/check.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

class WireLoans {
 public:
  // `ring`: descriptors of the device's transmit ring; as many loans can be out.
  explicit WireLoans(std::uint32_t ring)
      : ring_{ring}, mask_{std::bit_ceil(std::uint64_t{ring}) - 1}, loans_(mask_ + 1) {}

  [[nodiscard]] bool any() const noexcept { return pushed_ != popped_; }
  [[nodiscard]] bool full() const noexcept { return pushed_ - popped_ > mask_; }
  // How many there were, and how many of those are over: they end in their order.
  [[nodiscard]] std::uint64_t pushed() const noexcept { return pushed_; }
  [[nodiscard]] std::uint64_t popped() const noexcept { return popped_; }

  // A packet of so many segments went to the device.
  void sent(std::uint32_t segments) noexcept { sent_ += segments; }
  // Something of the packet that went last is lent. Not while full().
  void push(Completion& lender, std::uint32_t receipt) noexcept {
    CHECK(!full());
    loans_[pushed_++ & mask_] = {&lender, receipt, sent_};
  }

  // Ends the loans that are over; answers how many. `done(distance)` asks the driver for the
  // descriptor so far behind its newest, which is 0.
  template <class Done>
  unsigned reap(const Done& done) noexcept {
    unsigned count = 0;
    if (!any()) return count;
    if (done(0)) return end_until(sent_);
    for (unsigned asked = 0; any() && asked < questions;) {
      const std::uint64_t distance = sent_ - loans_[popped_ & mask_].end;
      if (distance >= ring_ - 1) {  // another packet has its descriptor
        count += end_until(sent_ - (ring_ - 1));
        continue;
      }
      const std::uint64_t found = look(distance, asked, done);
      if (found == none) break;
      count += end_until(sent_ - found);
    }
    return count;
  }
  // The device reads nothing any more: it was stopped.
  unsigned end_all() noexcept { return end_until(sent_); }

 private:
  static constexpr unsigned questions = 40;  // for one visit
  static constexpr std::uint64_t none = ~0ull;
  // Drivers speak of the last descriptor of a packet alone; a large one has some 20.
  static constexpr unsigned tries = 20;

  struct Loan {
    Completion* lender;
    std::uint32_t receipt;
    std::uint64_t end;  // descriptors sent up to the last one of its packet, at least
  };

  // The farthest descriptor from `distance` on towards the newest that is done.
  template <class Done>
  std::uint64_t look(std::uint64_t distance, unsigned& asked, const Done& done) noexcept {
    for (unsigned i = 0; i < tries && i < distance; ++i) {
      ++asked;
      if (done(static_cast<std::uint32_t>(distance - i))) return distance - i;
    }
    return none;
  }
  unsigned end_until(std::uint64_t end) noexcept {
    unsigned count = 0;
    for (; any() && loans_[popped_ & mask_].end <= end; ++count) {
      const Loan loan = loans_[popped_++ & mask_];
      loan.lender->release(loan.receipt);
    }
    return count;
  }

  const std::uint64_t ring_, mask_;
  std::vector<Loan> loans_;
  std::uint64_t pushed_ = 0, popped_ = 0;
  std::uint64_t sent_ = 0;  // descriptors, those of the driver's own not counted
};

}  // namespace millrace::vswitch

// What an EthdevQueue needs to send payloads where they lie. Private to switch/ethdev_*.cpp.
#pragma once

#include <rte_mbuf.h>

#include <array>
#include <utility>

#include "switch/ethdev_queue.hpp"

namespace millrace::vswitch {

// Looks for the end of what is lent after the queue left its reactor: a device that does not carry
// any more still reads. It leaves by itself. Thread: the queue's reactor.
class EthdevQueue::Leftovers final : public base::Poller {
 public:
  void begin(EthdevQueue& queue) noexcept {
    queue_ = &queue;
    queue.reactor_.add(*this);
  }
  void end() noexcept {
    if (queue_ != nullptr) std::exchange(queue_, nullptr)->reactor_.remove(*this);
  }

  bool poll() noexcept override {
    const bool over = queue_->reap();
    if (!queue_->loans_->any()) end();
    return over;
  }
  bool arm() noexcept override { return queue_->reap(); }
  void disarm() noexcept override {}
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override { return nap_ns; }

 private:
  static constexpr std::uint64_t nap_ns = 1'000'000;  // nobody is in a hurry
  EthdevQueue* queue_ = nullptr;                      // null: it is not on the reactor
};

struct EthdevQueue::Lending {
  // Nobody is told by the driver's freeing of an mbuf: see wire_loans.hpp.
  Lending() noexcept {
    shared.free_cb = [](void*, void*) {};
    shared.fcb_opaque = nullptr;
    rte_mbuf_ext_refcnt_set(&shared, 1);  // our own, so that it never ends
  }

  struct Loan {
    Completion* lender;
    std::uint32_t receipt;  // refused: it was copied
    std::uint32_t bytes;    // that are lent
  };
  std::array<Loan, burst_max> of_sending;
  std::array<std::uint16_t, burst_max> segments;  // of the mbufs in sending_

  // Part of a payload: where the device reads it; or, without an address, to be copied.
  struct Piece {
    const std::byte* data;
    std::uint32_t size;
    std::uint64_t iova;
    bool reached;
  };
  // What one packet may have: more than 64 KiB in pages, and few enough for any ring.
  static constexpr std::size_t pieces_max = 40;
  std::array<Piece, pieces_max> pieces;
  std::size_t piece_count = 0;
  std::uint32_t lent_bytes = 0;  // of the pieces

  DmaRegions::Hint hint;
  Leftovers leftovers;
  rte_mbuf_ext_shared_info shared{};
};

}  // namespace millrace::vswitch

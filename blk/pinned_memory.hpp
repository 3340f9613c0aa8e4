// PinnedMemory: one snapshot of a guest's memory as registered buffers of a ring that does nothing
// else. A reactor's ring clones them, which pins nothing anew and takes microseconds.
//
// The kernel holds each page from then on: a transfer need not look it up. What takes a page away
// from the file behind the memory (a balloon, free-page reporting, a truncation) does not take it
// from these buffers; a transfer then moves a page that the guest has no more. So nobody may do
// that while memory is pinned: see PinBoard.
//
// Life: made on control, pin() on the pinner's thread, read by reactors once it is ready(); it goes
// when no channel has it any more, and the pages and the mappings with it, in this order.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blk/pin_board.hpp"
#include "virtio/memory.hpp"

namespace millrace::blk {

class PinnedMemory {
 public:
  // The kernel's limit for one buffer.
  static constexpr std::uint64_t slot_bytes_max = 1ull << 30;
  enum class State : std::uint8_t { waiting, ready, failed };

  PinnedMemory(std::shared_ptr<const virtio::GuestMemory> memory, PinBoard& board);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  // Thread: the pinner's. Takes seconds for memory that the guest did not touch yet. `slot_bytes`:
  // less than the kernel's limit is for tests.
  void pin(std::uint64_t slot_bytes = slot_bytes_max);
  // Thread: control. pin() stops soon, with a failure. What is pinned stays.
  void abandon() noexcept { abandoned_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool abandoned() const noexcept {
    return abandoned_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] State state() const noexcept { return state_.load(std::memory_order_acquire); }
  [[nodiscard]] bool ready() const noexcept { return state() == State::ready; }
  [[nodiscard]] const std::string& why() const { return why_; }  // once it failed
  [[nodiscard]] const std::shared_ptr<const virtio::GuestMemory>& memory() const { return memory_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept;

  // --- once ready(); any thread ---
  // The buffer that all of `vectors` lie in; -1: there is none. `last`: where the caller last hit.
  [[nodiscard]] int slot_of(std::span<const iovec> vectors, std::uint32_t& last) const noexcept;
  [[nodiscard]] unsigned slots() const noexcept { return static_cast<unsigned>(slots_.size()); }
  [[nodiscard]] int ring_fd() const noexcept;

 private:
  struct Ring;  // the helper ring
  struct Slot {
    std::uintptr_t begin, end;
  };
  void leave_board();
  void cut(std::uint64_t slot_bytes);
  [[nodiscard]] std::string pin_all();

  const std::shared_ptr<const virtio::GuestMemory> memory_;
  PinBoard& board_;
  std::atomic<State> state_{State::waiting};
  std::atomic<bool> abandoned_{false};
  bool on_board_ = true;
  std::string why_;
  std::vector<Slot> slots_;  // by address
  std::unique_ptr<Ring> ring_;
};

}  // namespace millrace::blk

// PinnedMemory over liburing.
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "blk/limits.hpp"
#include "blk/pinned_memory.hpp"

namespace millrace::blk {

struct PinnedMemory::Ring {
  io_uring ring{};
  bool open = false;
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (!open) return;
    // Not left to the end of the ring, which the kernel brings about some time later.
    io_uring_unregister_buffers(&ring);
    io_uring_queue_exit(&ring);
  }
};

namespace {

std::string failure(const char* what, int outcome) {
  std::string out = std::string{what} + ": " + std::strerror(-outcome);
  if (outcome == -ENOMEM) out += "; is LimitMEMLOCK (ulimit -l) large enough?";
  return out;
}

}  // namespace

PinnedMemory::PinnedMemory(std::shared_ptr<const virtio::GuestMemory> memory, PinBoard& board)
    : memory_{std::move(memory)}, board_{board} {
  CHECK(memory_ != nullptr);
  board_.add(*memory_);
}

PinnedMemory::~PinnedMemory() {
  ring_.reset();
  leave_board();
}

void PinnedMemory::leave_board() {
  if (std::exchange(on_board_, false)) board_.remove(*memory_);
}

std::uint64_t PinnedMemory::bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& region : memory_->regions()) sum += region.size;
  return sum;
}

int PinnedMemory::ring_fd() const noexcept {
  return ring_->ring.ring_fd;
}

void PinnedMemory::cut(std::uint64_t slot_bytes) {
  for (const auto& region : memory_->regions()) {
    const auto begin = reinterpret_cast<std::uintptr_t>(region.mapping->data());
    for (std::uint64_t at = 0; at < region.size; at += slot_bytes) {
      slots_.push_back({begin + at, begin + std::min(region.size, at + slot_bytes)});
    }
  }
  std::sort(slots_.begin(), slots_.end(),
            [](const Slot& a, const Slot& b) { return a.begin < b.begin; });
}

// One buffer at a time, so that it can be abandoned between two.
std::string PinnedMemory::pin_all() {
  if (slots_.empty()) return "there is no memory";
  if (slots_.size() > limits::buffers_max) {
    return "the memory has " + std::to_string(slots_.size()) + " pieces; " +
           std::to_string(limits::buffers_max) + " can be pinned";
  }
  ring_ = std::make_unique<Ring>();
  int outcome = io_uring_queue_init(1, &ring_->ring, 0);
  if (outcome < 0) return failure("cannot make a ring to pin memory with", outcome);
  ring_->open = true;
  outcome = io_uring_register_buffers_sparse(&ring_->ring, slots());
  if (outcome < 0) return failure("cannot make a table of buffers", outcome);
  for (unsigned i = 0; i < slots(); ++i) {
    if (abandoned()) return "it was not needed any more";
    const Slot& slot = slots_[i];
    const iovec part{reinterpret_cast<void*>(slot.begin), slot.end - slot.begin};
    const __u64 tag = 0;
    outcome = io_uring_register_buffers_update_tag(&ring_->ring, i, &part, &tag, 1);
    if (outcome < 0) return failure("cannot pin guest memory", outcome);
    if (outcome != 1) return "the kernel pinned less than it was asked to";
  }
  return {};
}

void PinnedMemory::pin(std::uint64_t slot_bytes) {
  cut(slot_bytes);
  why_ = pin_all();
  if (!why_.empty()) {
    ring_.reset();
    leave_board();
  }
  state_.store(why_.empty() ? State::ready : State::failed, std::memory_order_release);
}

int PinnedMemory::slot_of(std::span<const iovec> vectors, std::uint32_t& last) const noexcept {
  if (vectors.empty()) return -1;
  const auto first = reinterpret_cast<std::uintptr_t>(vectors.front().iov_base);
  const auto has = [](const Slot& slot, std::uintptr_t at) {
    return at >= slot.begin && at < slot.end;
  };
  if (last >= slots_.size() || !has(slots_[last], first)) {
    const auto above =
        std::upper_bound(slots_.begin(), slots_.end(), first,
                         [](std::uintptr_t at, const Slot& slot) { return at < slot.begin; });
    if (above == slots_.begin() || !has(*(above - 1), first)) return -1;
    last = static_cast<std::uint32_t>(above - slots_.begin()) - 1;
  }
  const Slot& slot = slots_[last];
  for (const iovec& part : vectors) {
    const auto at = reinterpret_cast<std::uintptr_t>(part.iov_base);
    if (at < slot.begin || at > slot.end || part.iov_len > slot.end - at) return -1;
  }
  return static_cast<int>(last);
}

}  // namespace millrace::blk

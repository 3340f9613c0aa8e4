// Backend: where a disk's bytes are. Channel: one queue's way to them.
//
// A Backend is made, asked and resized on control. Each started queue gets a Channel of its own,
// which only the queue's reactor touches. Both are called once per burst, never once per request.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>

#include "base/reactor.hpp"
#include "base/result.hpp"
#include "blk/counters.hpp"
#include "blk/device.hpp"
#include "virtio/memory.hpp"

namespace millrace::blk {

enum class Operation : std::uint8_t { read, write, flush, discard, write_zeroes };

class IoList;

// Io: one operation on one range. Its owner fills in the first part and keeps it where it is until
// a channel hands it back.
struct Io {
  Operation operation = Operation::read;
  bool durable = false;                  // write: complete only when it is on the medium
  bool unmap = false;                    // write_zeroes: the space may be freed
  std::uint64_t offset = 0, length = 0;  // bytes left to do; moved on by advance()
  iovec* vectors = nullptr;              // read, write: memory for `length` bytes
  std::uint32_t vector_count = 0;
  std::int32_t result = 0;        // when handed back: 0, or a negative errno
  std::uint64_t transferred = 0;  // bytes read or written, also of a failed operation

  // Where the transfer stands in `vectors`: all before vector_at is done and as it was given; the
  // one at vector_at has lost its first `cut` bytes.
  std::uint32_t vector_at = 0;
  std::uint64_t cut = 0;

  // The channel's own.
  Io* next = nullptr;
  IoList* home = nullptr;        // where a finished step is put
  std::uint32_t step_bytes = 0;  // asked for in this step
  std::uint16_t attempts = 0;    // steps that made no or little progress
  std::int16_t bounce = -1;      // bounce buffer of this step
  bool past_direct = false;      // the direct descriptor refused it
  bool past_polled = false;      // the ring with iopoll refused it
  bool write_out = false;        // write_zeroes as plain writes

  // Forgets all progress. Call when a new operation is filled in.
  void reset_progress() noexcept {
    result = 0;
    transferred = cut = 0;
    vector_at = 0;
    next = nullptr;
    home = nullptr;
    step_bytes = 0;
    attempts = 0;
    bounce = -1;
    past_direct = past_polled = write_out = false;
  }
  [[nodiscard]] std::span<iovec> left() const noexcept {
    return {vectors + vector_at, vector_count - vector_at};
  }
  // `bytes` (at most `length`) more are done.
  void advance(std::uint64_t bytes) noexcept {
    CHECK(bytes <= length);
    offset += bytes;
    length -= bytes;
    transferred += bytes;
    while (vector_at < vector_count && bytes >= vectors[vector_at].iov_len) {
      iovec& done = vectors[vector_at];
      bytes -= done.iov_len;
      done.iov_base = static_cast<std::byte*>(done.iov_base) - cut;
      done.iov_len += cut;
      cut = 0;
      ++vector_at;
    }
    if (bytes == 0 || vector_at == vector_count) return;
    iovec& part = vectors[vector_at];
    part.iov_base = static_cast<std::byte*>(part.iov_base) + bytes;
    part.iov_len -= bytes;
    cut += bytes;
  }
};

// A FIFO of Ios, linked through Io::next.
class IoList {
 public:
  [[nodiscard]] bool empty() const noexcept { return head_ == nullptr; }
  [[nodiscard]] Io* front() const noexcept { return head_; }
  void push(Io& io) noexcept {
    io.next = nullptr;
    (head_ == nullptr ? head_ : tail_->next) = &io;
    tail_ = &io;
  }
  // nullptr when empty.
  Io* pop() noexcept {
    Io* const io = head_;
    if (io != nullptr) head_ = io->next;
    return io;
  }
  // Moves all of `other` behind what is here.
  void append(IoList& other) noexcept {
    if (other.head_ == nullptr) return;
    (head_ == nullptr ? head_ : tail_->next) = other.head_;
    tail_ = other.tail_;
    other.head_ = nullptr;
  }

 private:
  Io* head_ = nullptr;
  Io* tail_ = nullptr;
};

// Thread: the queue's reactor, but for the destructor. Nothing here allocates, blocks or throws.
class Channel {
 public:
  virtual ~Channel() = default;
  virtual void attached(base::Reactor& reactor) noexcept = 0;
  // Nothing may be in flight.
  virtual void detached(base::Reactor& reactor) noexcept = 0;
  // Takes all of `burst`, which is empty on return. Each Io comes back exactly once through poll().
  virtual void submit(IoList& burst) noexcept = 0;
  // One bounded visit: goes on with what waits, and appends what is finished to `done`. Returns
  // true if anything moved.
  virtual bool poll(IoList& done) noexcept = 0;
  // True when a visit now could do something without an event from outside.
  [[nodiscard]] virtual bool pending() const noexcept = 0;
  // The queue has other memory, and nothing in flight refers to what it had before. True: nor does
  // the channel any more; else it is asked again.
  [[nodiscard]] virtual bool memory_changed() noexcept { return true; }
  // Nothing is in flight and nothing will be submitted any more; the same answers.
  [[nodiscard]] virtual bool leaves_memory() noexcept { return true; }
};

// What a disk looks like, for its configuration space and limits. Bytes.
struct Geometry {
  std::uint64_t bytes = 0;
  std::uint32_t logical_block = 512, physical_block = 512;
  std::uint32_t alignment_offset = 0;  // first naturally aligned byte
  std::uint32_t io_min = 0, io_opt = 0;
  bool can_discard = false, can_unmap = false;  // DISCARD frees; zeroing may free
  std::uint64_t discard_max = 0, discard_granularity = 512, zero_max = 0;
};

// Thread: control.
class Backend {
 public:
  virtual ~Backend() = default;
  [[nodiscard]] virtual const Geometry& geometry() const = 0;
  [[nodiscard]] virtual BackendStatus status() const = 0;
  // For a queue of `depth` requests at most. `statistics` outlives it.
  [[nodiscard]] virtual std::unique_ptr<Channel> make_channel(unsigned depth,
                                                              QueueStatistics& statistics) = 0;
  // A queue will start with this memory, or all have it now.
  virtual void use_memory(const std::shared_ptr<const virtio::GuestMemory>&) {}
  // The queues are about to get other memory, or all have stopped.
  virtual void leave_memory() {}
  // No channel has memory that was left any more.
  virtual void give_memory_back() {}
  // See Device::resize. Answers the new size; what is in use never shrinks.
  virtual base::Result<std::uint64_t> resize(std::uint64_t bytes) = 0;
};

}  // namespace millrace::blk

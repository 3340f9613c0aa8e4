// InFlight: a request on its way through the backend: the second of its three stages. RequestPool
// owns all of a queue's, made by control when the queue starts.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "blk/request.hpp"

namespace millrace::blk {

// Thread: the queue's reactor, which gets it from RequestPool::begin and ends it with finish().
class InFlight : public Io {
 public:
  InFlight() = default;
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

  // The step that the backend was given is over. True: another one was filled in, submit it; false:
  // finish() now.
  [[nodiscard]] bool next_step() noexcept;
  // Writes the status byte and marks the written memory for a migration. It belongs to the pool
  // again as soon as the caller has passed it to RequestPool::end.
  [[nodiscard]] Completed finish(virtio::Queue& queue) noexcept;

  // True once the backend answered that the guest's memory is not there.
  [[nodiscard]] bool memory_refused() const noexcept { return memory_refused_; }
  // Touches what is left of the guest's memory, at most 1024 pages: a page that its front-end took
  // away is found out by that (see base::Mapping).
  void touch_memory() const noexcept;
  [[nodiscard]] const virtio::GuestMemory* memory() const noexcept { return memory_; }
  [[nodiscard]] std::uint64_t taken_cycles() const noexcept { return taken_cycles_; }
  [[nodiscard]] Operation request() const noexcept { return request_; }
  [[nodiscard]] std::uint64_t request_bytes() const noexcept { return request_bytes_; }

 private:
  friend class RequestPool;
  void log_data(virtio::Queue& queue) const noexcept;
  void use_range(const Range& range) noexcept;

  Operation request_ = Operation::read;  // what the driver asked; Io::operation is the current step
  std::uint64_t request_bytes_ = 0;
  std::uint64_t* guest_addresses_ = nullptr;  // of `vectors`, one for one
  Range* ranges_ = nullptr;
  std::uint32_t range_at_ = 0, range_count_ = 0;
  bool flush_after_ = false;
  bool memory_refused_ = false;
  std::int32_t failure_ = 0;
  std::uint64_t data_bytes_ = 0;  // moved by the data step
  StatusByte status_;
  virtio::Ticket ticket_;
  const virtio::GuestMemory* memory_ = nullptr;
  std::uint64_t taken_cycles_ = 0;
  InFlight *older_ = nullptr,
           *newer_ = nullptr;  // in the order of taking; newer_ also links free ones
};

class RequestPool {
 public:
  // Control. `segments`: memory pieces of one request.
  RequestPool(unsigned requests, unsigned segments, unsigned ranges);
  RequestPool(const RequestPool&) = delete;
  RequestPool& operator=(const RequestPool&) = delete;

  // --- owning reactor ---
  [[nodiscard]] bool exhausted() const noexcept { return free_ == nullptr; }
  [[nodiscard]] unsigned in_flight() const noexcept { return in_flight_; }
  // Needs one that is free. nullptr: the data lies in more pieces than fit.
  // durable: a write is complete only on the medium; flush_after: all earlier writes as well.
  [[nodiscard]] InFlight* begin(const Request& request, const virtio::Chain& chain,
                                const virtio::GuestMemory& memory, bool durable, bool flush_after,
                                std::uint64_t now) noexcept;
  void end(InFlight& request) noexcept;
  // The one that was taken first, or nullptr.
  [[nodiscard]] const InFlight* oldest() const noexcept { return oldest_; }
  // True if any uses another snapshot than `memory`.
  [[nodiscard]] bool uses_other_than(const virtio::GuestMemory& memory) const noexcept;

 private:
  bool fill_vectors(InFlight& request, std::span<const virtio::Segment> segments,
                    std::uint64_t skip, std::uint64_t bytes) noexcept;

  unsigned segments_;
  std::vector<iovec> vectors_;
  std::vector<std::uint64_t> guest_addresses_;
  std::vector<Range> ranges_;
  std::unique_ptr<InFlight[]> requests_;
  InFlight *free_ = nullptr, *oldest_ = nullptr, *newest_ = nullptr;
  unsigned in_flight_ = 0;
};

}  // namespace millrace::blk

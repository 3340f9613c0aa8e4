#include "blk/in_flight.hpp"

#include <algorithm>
#include <cerrno>

namespace millrace::blk {

using virtio::wire::BlkStatus;

void InFlight::use_range(const Range& range) noexcept {
  reset_progress();
  offset = range.offset;
  length = range.length;
}

bool InFlight::next_step() noexcept {
  if (operation == Operation::read || operation == Operation::write) data_bytes_ = transferred;
  if (result != 0) {
    failure_ = result;
    memory_refused_ = result == -EFAULT;
    return false;
  }
  while (++range_at_ < range_count_) {
    if (ranges_[range_at_].length == 0) continue;
    use_range(ranges_[range_at_]);
    return true;
  }
  if (!flush_after_) return false;
  flush_after_ = false;
  // The vectors stay as the data step left them: finish() reads them for the dirty log.
  const auto at = vector_at;
  const auto was_cut = cut;
  reset_progress();
  vector_at = at;
  cut = was_cut;
  operation = Operation::flush;
  offset = length = 0;
  return true;
}

void InFlight::log_data(virtio::Queue& queue) const noexcept {
  std::uint64_t left = data_bytes_;
  for (std::uint32_t i = 0; i < vector_count && left > 0; ++i) {
    const std::uint64_t lost = i == vector_at ? cut : 0;
    const std::uint64_t bytes = std::min<std::uint64_t>(left, vectors[i].iov_len + lost);
    const auto size = static_cast<std::uint32_t>(bytes);
    queue.wrote({static_cast<std::byte*>(vectors[i].iov_base) - lost, guest_addresses_[i], size},
                size);
    left -= bytes;
  }
}

Completed InFlight::finish(virtio::Queue& queue) noexcept {
  const bool read = request_ == Operation::read;
  if (read && queue.logging()) log_data(queue);
  const BlkStatus status = failure_ == 0 ? BlkStatus::ok : BlkStatus::io_error;
  status_.write(status, queue);
  const std::uint64_t data = read ? data_bytes_ : 0;
  return Completed{ticket_, static_cast<std::uint32_t>(data) + 1, status};
}

void InFlight::touch_memory() const noexcept {
  constexpr std::uint64_t page = 4096;
  unsigned budget = 1024;
  for (const iovec& part : left()) {
    const auto* const bytes = static_cast<const volatile std::uint8_t*>(part.iov_base);
    for (std::uint64_t at = 0; at < part.iov_len; at += page) {
      if (budget-- == 0) return;
      static_cast<void>(bytes[at]);
    }
    if (part.iov_len > 0) static_cast<void>(bytes[part.iov_len - 1]);
  }
}

RequestPool::RequestPool(unsigned requests, unsigned segments, unsigned ranges)
    : segments_{segments},
      vectors_(std::size_t{requests} * segments),
      guest_addresses_(std::size_t{requests} * segments),
      ranges_(std::size_t{requests} * ranges),
      requests_{std::make_unique<InFlight[]>(requests)} {
  CHECK(requests > 0 && segments > 0);
  for (unsigned i = requests; i-- > 0;) {
    InFlight& request = requests_[i];
    request.vectors = &vectors_[std::size_t{i} * segments];
    request.guest_addresses_ = &guest_addresses_[std::size_t{i} * segments];
    request.ranges_ = ranges == 0 ? nullptr : &ranges_[std::size_t{i} * ranges];
    request.newer_ = free_;
    free_ = &request;
  }
}

bool RequestPool::fill_vectors(InFlight& request, std::span<const virtio::Segment> segments,
                               std::uint64_t skip, std::uint64_t bytes) noexcept {
  request.vector_count = 0;
  for (const virtio::Segment& segment : segments) {
    if (bytes == 0) break;
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    std::byte* const data = segment.data + skip;
    const std::uint64_t guest = segment.guest_address + skip;
    const std::uint64_t size = std::min<std::uint64_t>(segment.size - skip, bytes);
    skip = 0;
    bytes -= size;
    if (request.vector_count > 0) {
      iovec& last = request.vectors[request.vector_count - 1];
      const std::uint64_t last_guest = request.guest_addresses_[request.vector_count - 1];
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == data &&
          last_guest + last.iov_len == guest) {
        last.iov_len += size;
        continue;
      }
    }
    if (request.vector_count == segments_) return false;
    request.guest_addresses_[request.vector_count] = guest;
    request.vectors[request.vector_count++] = iovec{data, size};
  }
  return bytes == 0;
}

InFlight* RequestPool::begin(const Request& wanted, const virtio::Chain& chain,
                             const virtio::GuestMemory& memory, bool durable, bool flush_after,
                             std::uint64_t now) noexcept {
  CHECK(free_ != nullptr);
  InFlight& request = *free_;
  request.reset_progress();
  request.operation = request.request_ = wanted.operation;
  request.durable = durable && wanted.operation == Operation::write;
  request.unmap = wanted.unmap;
  request.offset = wanted.offset;
  request.length = request.request_bytes_ = wanted.length;
  request.vector_count = 0;
  request.range_at_ = 0;
  request.range_count_ = static_cast<std::uint32_t>(wanted.ranges.size());
  if (wanted.operation == Operation::read) {
    if (!fill_vectors(request, chain.writable(), 0, wanted.length)) return nullptr;
  } else if (wanted.operation == Operation::write) {
    const std::uint64_t skip = sizeof(virtio::wire::BlkHeader);
    if (!fill_vectors(request, chain.readable(), skip, wanted.length)) return nullptr;
  } else if (!wanted.ranges.empty()) {
    std::copy(wanted.ranges.begin(), wanted.ranges.end(), request.ranges_);
    request.offset = wanted.ranges.front().offset;
    request.length = wanted.ranges.front().length;
  }
  request.flush_after_ = flush_after;
  request.memory_refused_ = false;
  request.failure_ = 0;
  request.data_bytes_ = 0;
  request.status_ = wanted.status;
  request.ticket_ = wanted.ticket;
  request.memory_ = &memory;
  request.taken_cycles_ = now;
  free_ = request.newer_;
  request.newer_ = nullptr;
  request.older_ = newest_;
  (newest_ == nullptr ? oldest_ : newest_->newer_) = &request;
  newest_ = &request;
  ++in_flight_;
  return &request;
}

void RequestPool::end(InFlight& request) noexcept {
  CHECK(in_flight_ > 0);
  (request.older_ == nullptr ? oldest_ : request.older_->newer_) = request.newer_;
  (request.newer_ == nullptr ? newest_ : request.newer_->older_) = request.older_;
  request.older_ = nullptr;
  request.newer_ = free_;
  free_ = &request;
  --in_flight_;
}

bool RequestPool::uses_other_than(const virtio::GuestMemory& memory) const noexcept {
  for (const InFlight* request = oldest_; request != nullptr; request = request->newer_) {
    if (request->memory_ != &memory) return true;
  }
  return false;
}

}  // namespace millrace::blk

#include "virtio/chain.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace millrace::virtio {
namespace {

// Calls `each(bytes of a segment, count, position in the buffer)` for [offset, offset + size).
template <class Each>
std::size_t for_each_piece(std::span<const Segment> segments, std::size_t offset, std::size_t size,
                           Each each) noexcept {
  std::size_t done = 0;
  for (const Segment& segment : segments) {
    if (done == size) break;
    if (offset >= segment.size) {
      offset -= segment.size;
      continue;
    }
    const std::size_t count = std::min<std::size_t>(segment.size - offset, size - done);
    each(segment.data + offset, count, done);
    done += count;
    offset = 0;
  }
  return done;
}

}  // namespace

std::size_t copy_from(std::span<const Segment> segments, std::size_t offset,
                      std::span<std::byte> out) noexcept {
  const auto done = for_each_piece(segments, offset, out.size(),
                                   [&](const std::byte* data, std::size_t count, std::size_t at) {
                                     std::memcpy(out.data() + at, data, count);
                                   });
  std::atomic_signal_fence(std::memory_order_seq_cst);  // nothing is read a second time
  return done;
}

std::size_t copy_to(std::span<const Segment> segments, std::size_t offset,
                    std::span<const std::byte> in) noexcept {
  return for_each_piece(segments, offset, in.size(),
                        [&](std::byte* data, std::size_t count, std::size_t at) {
                          std::memcpy(data, in.data() + at, count);
                        });
}

}  // namespace millrace::virtio

// Chain: one buffer of a virtqueue as the device sees it: readable segments, then writable ones,
// already translated and bounds-checked. Filled by Queue::take; each descriptor was read once.
//
// A Chain is large (it can hold the longest legal chain) and is made once per queue by control.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "virtio/limits.hpp"

namespace millrace::virtio {

struct Segment {
  std::byte* data;              // in this process
  std::uint64_t guest_address;  // for the dirty log
  std::uint32_t size;           // bytes, > 0
};

// Names a taken buffer when it is given back. Copy it out of the Chain for a request in flight.
struct Ticket {
  std::uint16_t id = 0;     // split: head index; packed: buffer id
  std::uint16_t slots = 0;  // ring entries it occupies (split: 1; packed: descriptors in the ring)
  std::uint16_t inflight = 0;  // packed with an inflight region: its entry there
};

class Chain {
 public:
  [[nodiscard]] std::span<const Segment> readable() const noexcept {
    return {segments_.data(), readable_count_};
  }
  [[nodiscard]] std::span<const Segment> writable() const noexcept {
    return {segments_.data() + readable_count_, count_ - readable_count_};
  }
  [[nodiscard]] std::uint64_t readable_bytes() const noexcept { return readable_bytes_; }
  [[nodiscard]] std::uint64_t writable_bytes() const noexcept { return writable_bytes_; }
  [[nodiscard]] const Ticket& ticket() const noexcept { return ticket_; }

 private:
  friend class ChainBuilder;
  std::array<Segment, limits::chain_segments_max> segments_;
  std::uint32_t count_ = 0, readable_count_ = 0;
  std::uint64_t readable_bytes_ = 0, writable_bytes_ = 0;
  Ticket ticket_;
};

// Copies `out.size()` bytes at `offset` of the concatenated segments into `out`; returns the bytes
// copied, less than asked where the segments end. Each source byte is read once.
std::size_t copy_from(std::span<const Segment> segments, std::size_t offset,
                      std::span<std::byte> out) noexcept;
// The other way. Does not log; see Queue::wrote.
std::size_t copy_to(std::span<const Segment> segments, std::size_t offset,
                    std::span<const std::byte> in) noexcept;

}  // namespace millrace::virtio

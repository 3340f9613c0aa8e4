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
  std::uint32_t size;           // bytes, > 0 in a chain
};

// Names a taken buffer when it is given back. Copy it out of the Chain for a request in flight.
// One word, so that it is never stored in parts and read back as a whole, which stalls.
class Ticket {
 public:
  constexpr Ticket() = default;
  // Of a buffer that the ring holds until it is given back.
  constexpr Ticket(std::uint16_t id, std::uint16_t slots, std::uint16_t inflight)
      : word_{held_bit | id | std::uint64_t{slots} << 16 | std::uint64_t{inflight} << 32} {}
  // Of one of a single ring entry that is given back in the visit in which it was taken.
  [[nodiscard]] static constexpr Ticket passing(std::uint16_t id) {
    Ticket ticket;
    ticket.word_ = id | std::uint64_t{1} << 16;
    return ticket;
  }
  // Split: head index; packed: buffer id.
  [[nodiscard]] constexpr std::uint16_t id() const { return static_cast<std::uint16_t>(word_); }
  // Ring entries it occupies. Split: 1; packed: descriptors in the ring.
  [[nodiscard]] constexpr std::uint16_t slots() const {
    return static_cast<std::uint16_t>(word_ >> 16);
  }
  // Packed with an inflight region: its entry there.
  [[nodiscard]] constexpr std::uint16_t inflight() const {
    return static_cast<std::uint16_t>(word_ >> 32);
  }
  [[nodiscard]] constexpr bool held() const { return (word_ & held_bit) != 0; }

 private:
  static constexpr std::uint64_t held_bit = std::uint64_t{1} << 48;
  std::uint64_t word_ = 0;
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
  // The first segments, which are all that most chains have, lie beside the rest.
  std::uint32_t count_ = 0, readable_count_ = 0;
  std::uint64_t readable_bytes_ = 0, writable_bytes_ = 0;
  Ticket ticket_;
  std::array<Segment, limits::chain_segments_max> segments_;
};

// Copies `out.size()` bytes at `offset` of the concatenated segments into `out`; returns the bytes
// copied, less than asked where the segments end. Each source byte is read once.
std::size_t copy_from(std::span<const Segment> segments, std::size_t offset,
                      std::span<std::byte> out) noexcept;
// The other way. Does not log; see Queue::wrote.
std::size_t copy_to(std::span<const Segment> segments, std::size_t offset,
                    std::span<const std::byte> in) noexcept;

}  // namespace millrace::virtio

// Fault: what a peer did wrong, in the data path's terms. It poisons that peer's queue.
#pragma once

#include <cstdint>

namespace millrace::virtio {

enum class Fault : std::uint8_t {
  none,
  bad_queue_size,       // 0, too large, or not a power of two for a split ring
  ring_misaligned,      // virtio 1.2 §2.7, §2.8.10
  ring_outside_memory,  // a ring is not wholly inside one memory region
  avail_index_jump,     // more new entries than the ring holds
  head_out_of_range,    // a head or next index past the table
  head_in_flight,       // the same head is published while the device still has it
  chain_loop,           // more descriptors than the table holds
  chain_too_long,       // more than limits::chain_descriptors_max
  chain_order,          // readable after writable (virtio 1.2 §2.7.4.2)
  chain_empty,          // no descriptor with a length
  indirect_bad,         // length not a multiple of 16, zero, nested, not negotiated
  address_outside_memory,
  length_overflow,
  request_malformed,  // the device's own header is short or wrong
  memory_lost,        // SIGBUS: the front-end truncated its memory
  inflight_bad,       // the shared inflight region holds nonsense
  position_bad,       // a ring position outside the ring
};

// A word or two for logs and counters. Never null.
[[nodiscard]] const char* name_of(Fault fault) noexcept;

}  // namespace millrace::virtio

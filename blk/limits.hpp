// Every bound of virtio-blk, with the reason.
#pragma once

#include <cstdint>

#include "virtio/limits.hpp"

namespace millrace::blk::limits {

// Requests of one queue in flight. A deeper queue waits in the virtqueue; nothing is refused.
inline constexpr std::uint32_t requests_max = 1024;
// Requests taken in one visit, so that no queue starves its neighbours.
inline constexpr unsigned take_budget = 64;
// Data segments that a disk may advertise: preadv(2) takes 1024.
inline constexpr std::uint32_t segments_max = 1008;
// A segment that crosses memory regions becomes several; room for that.
inline constexpr std::uint32_t segments_spare = 8;
inline constexpr std::uint32_t ranges_max = 256;     // segments of one DISCARD
inline constexpr std::uint32_t ranges_default = 32;  // what Linux sends at most is 256
// Bytes that a memory backend copies in one visit.
inline constexpr std::uint64_t memory_bytes_a_visit = 512 * 1024;
inline constexpr std::uint64_t memory_discard_a_visit = 64ull << 20;
// Steps of one operation that may end short, or be refused for now (EAGAIN, a visit later again),
// before the operation fails.
inline constexpr unsigned attempts_max = 64, retries_max = 4096;
inline constexpr std::uint32_t bounce_bytes = 128 * 1024, bounce_buffers = 16;
inline constexpr std::uint32_t zero_bytes = 64 * 1024;  // one piece of zeroes
inline constexpr unsigned zero_vectors = 16;            // pieces in one write
inline constexpr unsigned ring_entries = 1024, completion_entries = 4096, files_max = 2048;
// Registered buffers of one ring: the kernel's limit. Guest memory takes one for each GiB.
inline constexpr unsigned buffers_max = 16384;
// Guests' memories that one ring has buffers of.
inline constexpr unsigned clones_max = 256;

static_assert(segments_max + segments_spare <= 1024);
static_assert(take_budget <= requests_max && ring_entries <= completion_entries);
static_assert(segments_max <= virtio::limits::chain_segments_max);

}  // namespace millrace::blk::limits

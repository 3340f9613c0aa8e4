// Every bound of the ring layer, with the reason, and their relations checked at compile time.
#pragma once

#include <cstdint>

namespace millrace::virtio::limits {

inline constexpr std::uint32_t queue_size_min = 1;
inline constexpr std::uint32_t queue_size_max = 32768;  // virtio 1.2 §2.7 and §2.8.10.1
// Descriptors of one chain. Linux sends at most 19 for net and seg_max + 2 for blk; QEMU stops at
// 1024.
inline constexpr std::uint32_t chain_descriptors_max = 1024;
// Segments of one chain: a descriptor that crosses memory regions becomes several.
inline constexpr std::uint32_t chain_segments_max = 2 * chain_descriptors_max;
inline constexpr std::uint32_t memory_slots_max =
    509;  // what KVM offers less a few; see vhost-user
inline constexpr std::uint64_t chain_bytes_max = 1ull << 30;

static_assert(chain_descriptors_max <= queue_size_max);
static_assert(chain_segments_max > chain_descriptors_max);

}  // namespace millrace::virtio::limits

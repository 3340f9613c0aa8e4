// Virtqueues in memory: virtio 1.2 §2.7 (split) and §2.8 (packed). Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

using base::le16;
using base::le32;
using base::le64;

// §2.7.5 and §2.8.13: bits of a descriptor's flags.
inline constexpr std::uint16_t descriptor_next = 1;
inline constexpr std::uint16_t descriptor_write = 2;
inline constexpr std::uint16_t descriptor_indirect = 4;
inline constexpr std::uint16_t descriptor_available = 1u << 7;  // packed
inline constexpr std::uint16_t descriptor_used = 1u << 15;      // packed

// §2.7.5: an entry of the descriptor table, and of an indirect table.
struct Descriptor {
  le64 address;
  le32 length;
  le16 flags;
  le16 next;
};
static_assert(sizeof(Descriptor) == 16 && std::is_trivially_copyable_v<Descriptor>);

// §2.7.6: a le16 head for each entry of the queue follows, then a le16 used_event.
struct Available {
  le16 flags;
  le16 index;
};
inline constexpr std::uint16_t available_no_interrupt = 1;
static_assert(sizeof(Available) == 4);

// §2.7.8: a UsedElement for each entry of the queue follows, then a le16 avail_event.
struct Used {
  le16 flags;
  le16 index;
};
inline constexpr std::uint16_t used_no_notify = 1;
static_assert(sizeof(Used) == 4);
struct UsedElement {
  le32 id;
  le32 length;
};
static_assert(sizeof(UsedElement) == 8 && std::is_trivially_copyable_v<UsedElement>);

// §2.7: alignment of the three parts.
inline constexpr std::size_t split_descriptor_align = 16, available_align = 2, used_align = 4;

// §2.8.13: an entry of the descriptor ring, and of an indirect table.
struct PackedDescriptor {
  le64 address;
  le32 length;
  le16 id;
  le16 flags;
};
static_assert(sizeof(PackedDescriptor) == 16 && std::is_trivially_copyable_v<PackedDescriptor>);
static_assert(offsetof(PackedDescriptor, id) == 12 && offsetof(PackedDescriptor, flags) == 14);

// §2.8.14: driver and device event suppression.
struct alignas(4) EventSuppression {
  le16 offset_wrap;  // bits 0-14: descriptor offset; bit 15: wrap counter
  le16 flags;
};
inline constexpr std::uint16_t event_enable = 0, event_disable = 1, event_descriptor = 2;
inline constexpr std::uint16_t event_flags_mask = 3;
inline constexpr std::uint16_t event_wrap = 1u << 15;
static_assert(sizeof(EventSuppression) == 4 && std::is_trivially_copyable_v<EventSuppression>);

// §2.8.10.1: alignment of the three parts.
inline constexpr std::size_t packed_descriptor_align = 16, event_align = 4;

}  // namespace millrace::virtio::wire

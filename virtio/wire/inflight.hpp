// The inflight region that a front-end keeps for us: vhost-user, "Inflight I/O tracking".
// Layout only. Integers are in host order. Each queue's part starts at a multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace millrace::virtio::wire {

inline constexpr std::uint16_t inflight_version = 1;  // 0: nobody initialised it yet
inline constexpr std::size_t inflight_align = 64;

struct InflightSplitEntry {  // DescStateSplit
  std::uint8_t inflight;
  std::uint8_t padding[5];
  std::uint16_t next;     // the entry given before this one in the last batch
  std::uint64_t counter;  // order in which buffers were taken
};
static_assert(sizeof(InflightSplitEntry) == 16 && offsetof(InflightSplitEntry, next) == 6);

struct InflightSplit {  // QueueRegionSplit; its entries follow
  std::uint64_t features;
  std::uint16_t version;
  std::uint16_t entries;  // desc_num: the queue's size
  std::uint16_t last_batch_head;
  std::uint16_t used_index;
};
static_assert(sizeof(InflightSplit) == 16);

struct InflightPackedEntry {  // DescStatePacked
  std::uint8_t inflight;      // in a buffer's first entry
  std::uint8_t padding;
  std::uint16_t next;     // the next entry of this buffer, or the next free one
  std::uint16_t last;     // in a buffer's first entry: its last entry
  std::uint16_t count;    // in a buffer's first entry: how many it has
  std::uint64_t counter;  // order in which buffers were taken
  std::uint16_t id;       // what follows is a copy of the descriptor
  std::uint16_t flags;
  std::uint32_t length;
  std::uint64_t address;
};
static_assert(sizeof(InflightPackedEntry) == 32 && offsetof(InflightPackedEntry, counter) == 8 &&
              offsetof(InflightPackedEntry, address) == 24);

// These two groups change together, so each is one aligned word and stored as one.
struct alignas(4) InflightPackedHeads {
  std::uint16_t free_head;
  std::uint16_t old_free_head;
};
struct alignas(8) InflightPackedPlaces {
  std::uint16_t used_index;
  std::uint16_t old_used_index;
  std::uint8_t used_wrap;
  std::uint8_t old_used_wrap;
  std::uint8_t padding[2];
};
struct InflightPacked {  // QueueRegionPacked; its entries follow
  std::uint64_t features;
  std::uint16_t version;
  std::uint16_t entries;  // desc_num: the queue's size
  InflightPackedHeads heads;
  InflightPackedPlaces places;
  std::uint8_t padding[8];
};
static_assert(sizeof(InflightPacked) == 32 && offsetof(InflightPacked, heads) == 12 &&
              offsetof(InflightPacked, places) == 16 && sizeof(InflightPackedPlaces) == 8);

}  // namespace millrace::virtio::wire

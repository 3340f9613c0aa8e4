// The wire format of virtio-blk: virtio 1.2 section 5.2. Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

// Feature bits, §5.2.3.
namespace blk_feature {
inline constexpr std::uint64_t size_max = 1ull << 1;
inline constexpr std::uint64_t seg_max = 1ull << 2;
inline constexpr std::uint64_t geometry = 1ull << 4;
inline constexpr std::uint64_t ro = 1ull << 5;
inline constexpr std::uint64_t blk_size = 1ull << 6;
inline constexpr std::uint64_t flush = 1ull << 9;
inline constexpr std::uint64_t topology = 1ull << 10;
inline constexpr std::uint64_t config_wce = 1ull << 11;
inline constexpr std::uint64_t mq = 1ull << 12;
inline constexpr std::uint64_t discard = 1ull << 13;
inline constexpr std::uint64_t write_zeroes = 1ull << 14;
inline constexpr std::uint64_t lifetime = 1ull << 15;
inline constexpr std::uint64_t secure_erase = 1ull << 16;
inline constexpr std::uint64_t zoned = 1ull << 17;
}  // namespace blk_feature

// Request types, §5.2.6.
enum class BlkType : std::uint32_t {
  in = 0,
  out = 1,
  flush = 4,
  get_id = 8,
  get_lifetime = 10,
  discard = 11,
  write_zeroes = 13,
  secure_erase = 14,
};

enum class BlkStatus : std::uint8_t { ok = 0, io_error = 1, unsupported = 2 };

// Unit of every sector number and of the capacity, whatever blk_size says.
inline constexpr std::uint32_t blk_sector_size = 512;
inline constexpr std::uint32_t blk_id_size = 20;  // bytes that GET_ID answers

struct BlkHeader {
  base::le32 type, reserved;
  base::le64 sector;
};
static_assert(sizeof(BlkHeader) == 16 && std::is_trivially_copyable_v<BlkHeader>);

// One segment of DISCARD and WRITE_ZEROES.
struct BlkRange {
  base::le64 sector;
  base::le32 sectors;
  base::le32 flags;  // bit 0: unmap (WRITE_ZEROES only); all others reserved
};
static_assert(sizeof(BlkRange) == 16 && std::is_trivially_copyable_v<BlkRange>);
inline constexpr std::uint32_t blk_range_unmap = 1;

// Configuration space, §5.2.4, up to the last field that a feature of ours makes valid.
struct BlkConfig {
  base::le64 capacity;  // sectors of 512 bytes
  base::le32 size_max;
  base::le32 seg_max;
  base::le16 cylinders;
  std::uint8_t heads, sectors;
  base::le32 blk_size;
  std::uint8_t physical_block_exp;  // log2 of logical blocks in a physical block
  std::uint8_t alignment_offset;    // first aligned logical block
  base::le16 min_io_size;           // logical blocks
  base::le32 opt_io_size;           // logical blocks
  std::uint8_t writeback;
  std::uint8_t unused0;
  base::le16 num_queues;
  base::le32 max_discard_sectors;
  base::le32 max_discard_seg;
  base::le32 discard_sector_alignment;
  base::le32 max_write_zeroes_sectors;
  base::le32 max_write_zeroes_seg;
  std::uint8_t write_zeroes_may_unmap;
  std::uint8_t unused1[3];
};
static_assert(std::is_trivially_copyable_v<BlkConfig>);
static_assert(sizeof(BlkConfig) == 64);  // 60 bytes of fields, padded to the alignment of capacity
static_assert(offsetof(BlkConfig, writeback) == 32 && offsetof(BlkConfig, num_queues) == 34);
static_assert(offsetof(BlkConfig, write_zeroes_may_unmap) == 56);
inline constexpr std::size_t blk_config_size = 60;

}  // namespace millrace::virtio::wire

// The wire format of virtio-balloon: virtio 1.2 section 5.5. Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

// Feature bits, §5.5.3.
namespace balloon_feature {
inline constexpr std::uint64_t must_tell_host = 1ull << 0;
inline constexpr std::uint64_t stats_vq = 1ull << 1;
inline constexpr std::uint64_t deflate_on_oom = 1ull << 2;
inline constexpr std::uint64_t free_page_hint = 1ull << 3;
inline constexpr std::uint64_t page_poison = 1ull << 4;
inline constexpr std::uint64_t page_reporting = 1ull << 5;
}  // namespace balloon_feature

// Unit of every page number and count, whatever the pages of guest and host are (§5.5.6).
inline constexpr std::uint32_t balloon_page_size = 4096;

// Configuration space, §5.5.4.
struct BalloonConfig {
  base::le32 num_pages;  // the balloon's size as the host wants it
  base::le32 actual;     // and as it is: the driver's to write
  base::le32 free_page_hint_cmd_id;
  base::le32 poison_val;
};
static_assert(sizeof(BalloonConfig) == 16 && std::is_trivially_copyable_v<BalloonConfig>);

// One figure of the statistics queue, §5.5.6.3: 10 bytes without padding.
inline constexpr std::size_t balloon_stat_size = 10, balloon_stat_value_at = 2;
enum class BalloonStat : std::uint16_t {
  swap_in = 0,
  swap_out = 1,
  major_faults = 2,
  minor_faults = 3,
  free_memory = 4,
  total_memory = 5,
  available_memory = 6,
  disk_caches = 7,
  hugetlb_allocations = 8,
  hugetlb_failures = 9,
};
inline constexpr unsigned balloon_stats_known = 10;

}  // namespace millrace::virtio::wire

// The wire format of virtio-mem: virtio 1.2 section 5.15. Layout and numbers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/endian.hpp"

namespace millrace::virtio::wire {

// Feature bits, §5.15.3.
namespace mem_feature {
inline constexpr std::uint64_t acpi_pxm = 1ull << 0;
inline constexpr std::uint64_t unplugged_inaccessible = 1ull << 1;
}  // namespace mem_feature

// Configuration space, §5.15.4. The driver writes none of it. What a front-end that owns the
// guest's addresses tells the device (SET_CONFIG) is the first mem_place_size bytes.
struct MemConfig {
  base::le64 block_size;  // bytes, a power of two; sizes and addresses are multiples of it
  base::le16 node_id;     // with acpi_pxm only
  std::uint8_t padding[6];
  base::le64 addr;         // guest physical
  base::le64 region_size;  // bytes, all sizes
  base::le64 usable_region_size;
  base::le64 plugged_size;
  base::le64 requested_size;
};
static_assert(sizeof(MemConfig) == 56 && std::is_trivially_copyable_v<MemConfig>);
inline constexpr std::size_t mem_place_size = offsetof(MemConfig, usable_region_size);
static_assert(mem_place_size == 32);

// Requests, §5.15.6.
enum class MemRequestType : std::uint16_t { plug = 0, unplug = 1, unplug_all = 2, state = 3 };
struct MemRequest {
  base::le16 type;
  base::le16 padding[3];
  base::le64 addr;  // not of unplug_all
  base::le16 blocks;
  base::le16 more_padding[3];
};
static_assert(sizeof(MemRequest) == 24 && std::is_trivially_copyable_v<MemRequest>);

enum class MemResponseType : std::uint16_t { ack = 0, nack = 1, busy = 2, error = 3 };
enum class MemBlockState : std::uint16_t { plugged = 0, unplugged = 1, mixed = 2 };
struct MemResponse {
  base::le16 type;
  base::le16 padding[3];
  base::le16 state;  // of an acknowledged state request
};
static_assert(sizeof(MemResponse) == 10 && std::is_trivially_copyable_v<MemResponse>);

}  // namespace millrace::virtio::wire

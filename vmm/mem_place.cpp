#include "vmm/mem_place.hpp"

#include <span>

#include "virtio/wire/mem.hpp"

namespace millrace::vmm {

namespace {

// What Linux takes as a huge page, and the size of the host's too.
constexpr std::uint64_t smallest_block = 2 << 20;
// A back-end keeps a bit for each; larger regions come in larger blocks.
constexpr std::uint64_t blocks_most = 16384;

}  // namespace

std::vector<std::byte> mem_place_of(const RamRegion& region) {
  auto block = smallest_block;
  while (region.size / block > blocks_most) block *= 2;
  virtio::wire::MemConfig place{};
  place.block_size = base::le64{block};
  place.addr = base::le64{region.guest_address};
  place.region_size = base::le64{region.size};
  const auto bytes = std::as_bytes(std::span{&place, 1}).first(virtio::wire::mem_place_size);
  return {bytes.begin(), bytes.end()};
}

}  // namespace millrace::vmm

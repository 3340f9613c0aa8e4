#include "guest/mem_blocks.hpp"

#include <algorithm>
#include <bit>
#include <string>

namespace millrace::guest {

using virtio::wire::MemBlockState;

base::Result<void> MemBlocks::check(const MemPlace& place) {
  const auto block = place.block_size;
  if (!std::has_single_bit(block) || block < block_size_min || block > block_size_max) {
    return base::fail("blocks of " + std::to_string(block) + " bytes: a power of two, 2 MiB to 1 " +
                      "GiB, is wanted");
  }
  if (place.address % block != 0 || place.size % block != 0 || place.size == 0 ||
      place.address + place.size < place.address) {
    return base::fail("a region of " + std::to_string(place.size) + " bytes at " +
                      std::to_string(place.address) + ": whole blocks are wanted");
  }
  if (place.size / block > blocks_max) {
    return base::fail("a region of " + std::to_string(place.size / block) + " blocks: at most " +
                      std::to_string(blocks_max) + "; larger blocks are needed");
  }
  return {};
}

void MemBlocks::place(const MemPlace& place) {
  place_ = place;
  clear();
}

bool MemBlocks::holds(std::uint64_t address, std::uint64_t blocks) const {
  if (blocks == 0 || place_.size == 0 || address % place_.block_size != 0) return false;
  const auto offset = address - place_.address;  // wraps to large for addresses before it
  if (address < place_.address || offset >= place_.size) return false;
  return blocks <= (place_.size - offset) / place_.block_size;
}

MemBlockState MemBlocks::state(std::uint64_t address, std::uint64_t blocks) const {
  const auto first = (address - place_.address) / place_.block_size;
  std::uint64_t plugged = 0;
  for (auto i = first; i < first + blocks; ++i) plugged += at(i) ? 1 : 0;
  if (plugged == 0) return MemBlockState::unplugged;
  return plugged == blocks ? MemBlockState::plugged : MemBlockState::mixed;
}

void MemBlocks::set(std::uint64_t address, std::uint64_t blocks, bool plugged) {
  const auto first = (address - place_.address) / place_.block_size;
  for (auto i = first; i < first + blocks; ++i) {
    if (at(i) == plugged) continue;
    map_[i / 64] ^= 1ull << i % 64;
    plugged_ += plugged ? 1 : ~0ull;
  }
}

void MemBlocks::clear() {
  map_ = {};
  plugged_ = 0;
}

bool MemBlocks::restore(const Map& map) {
  const auto blocks = place_.size == 0 ? 0 : place_.size / place_.block_size;
  std::uint64_t plugged = 0;
  for (std::size_t i = 0; i < map.size(); ++i) {
    const auto inside = blocks <= i * 64 ? 0 : std::min<std::uint64_t>(blocks - i * 64, 64);
    const auto beyond = inside == 64 ? 0 : ~0ull << inside;
    if ((map[i] & beyond) != 0) return false;
    plugged += static_cast<unsigned>(std::popcount(map[i]));
  }
  map_ = map;
  plugged_ = plugged;
  return true;
}

}  // namespace millrace::guest

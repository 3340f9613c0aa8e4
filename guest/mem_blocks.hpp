// MemBlocks: which blocks of a virtio-mem region are plugged. Thread: one at a time.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/result.hpp"
#include "virtio/wire/mem.hpp"

namespace millrace::guest {

// Where the region lies, as the guest's VMM says. Bytes, guest physical.
struct MemPlace {
  std::uint64_t address = 0, size = 0, block_size = 0;
  bool operator==(const MemPlace&) const = default;
};

class MemBlocks {
 public:
  // Their map is to fit into a record that outlives the process (virtio::KeptArea).
  static constexpr std::size_t blocks_max = 16384;
  static constexpr std::uint64_t block_size_min = 2 << 20, block_size_max = 1 << 30;
  using Map = std::array<std::uint64_t, blocks_max / 64>;

  // Fails, in one line, on a place that no region can have.
  static base::Result<void> check(const MemPlace& place);

  // A checked place, or none: {}. Nothing is plugged.
  void place(const MemPlace& place);
  [[nodiscard]] const MemPlace& place() const { return place_; }
  // Whether these are whole blocks of the region, one at least.
  [[nodiscard]] bool holds(std::uint64_t address, std::uint64_t blocks) const;
  // Of blocks that it holds.
  [[nodiscard]] virtio::wire::MemBlockState state(std::uint64_t address,
                                                  std::uint64_t blocks) const;
  void set(std::uint64_t address, std::uint64_t blocks, bool plugged);
  void clear();
  // Bytes.
  [[nodiscard]] std::uint64_t plugged() const { return plugged_ * place_.block_size; }

  // For a record. False: it has bits beyond the region, and nothing was taken.
  [[nodiscard]] const Map& map() const { return map_; }
  bool restore(const Map& map);

 private:
  [[nodiscard]] bool at(std::uint64_t block) const {
    return (map_[block / 64] >> block % 64 & 1) != 0;
  }
  MemPlace place_;
  Map map_{};
  std::uint64_t plugged_ = 0;  // blocks
};

}  // namespace millrace::guest

// IovaSpace: chooses addresses (IOVAs) for memory that devices shall see, where nobody asks for
// certain ones: our own addresses have more bits than many an IOMMU. Pure; thread: one at a time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "vfio/domain.hpp"

namespace millrace::vfio {

class IovaSpace {
 public:
  // `ranges`: what the IOMMU takes, in order; empty: anything of 48 bits.
  explicit IovaSpace(std::vector<IovaRange> ranges);

  // Somebody else maps there. It may reach beyond the ranges.
  void reserve(std::uint64_t first, std::uint64_t bytes) { taken_[first] = bytes; }
  // The lowest free place for memory at `address`, above 4 GiB where there is one. It lies like
  // `address` in a page of the largest size that the memory fills, so that the IOMMU can use such
  // pages. Nothing: there is no room. `bytes` > 0.
  [[nodiscard]] std::optional<std::uint64_t> take(std::uint64_t address, std::uint64_t bytes);
  // A place that take() answered is free again.
  void give(std::uint64_t iova) { taken_.erase(iova); }

 private:
  [[nodiscard]] std::optional<std::uint64_t> search(std::uint64_t from, std::uint64_t address,
                                                    std::uint64_t bytes, std::uint64_t page) const;

  std::vector<IovaRange> ranges_;
  std::map<std::uint64_t, std::uint64_t> taken_;  // bytes by first address
};

}  // namespace millrace::vfio

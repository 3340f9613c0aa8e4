// plan(): how a region of memory is cut into mappings of an IOMMU.
//
// One mapping is one entry of the kernel's table however large it is, and the kernel takes the
// largest pages that the memory behind allows; so a region stays whole, and is cut only where the
// IOMMU has no addresses (the window of interrupt messages, for one). Pure: it asks nobody.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.hpp"
#include "vfio/domain.hpp"

namespace millrace::vfio {

// Part of a region: `offset` from its start.
struct Piece {
  std::uint64_t iova = 0, offset = 0, bytes = 0;
  friend bool operator==(const Piece&, const Piece&) = default;
};

struct Plan {
  std::vector<Piece> pieces;   // in order
  std::uint64_t left_out = 0;  // bytes for which the IOMMU has no address: no device reaches them
};

// For `bytes` from `iova` on, both multiples of offer.unit(). Fails with one line: they are not,
// the region wraps around, none of it can be mapped, or it takes more entries than are left.
[[nodiscard]] base::Result<Plan> plan(std::uint64_t iova, std::uint64_t bytes, const Offer& offer);

}  // namespace millrace::vfio

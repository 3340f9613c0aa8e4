#include "vfio/plan.hpp"

#include <algorithm>
#include <string>

#include "base/hex.hpp"
#include "base/units.hpp"

namespace millrace::vfio {

using base::fail;
using base::Result;

namespace {

std::string text_of(std::uint64_t iova, std::uint64_t bytes) {
  return base::format_bytes(bytes) + " at IOVA " + base::format_hex(iova);
}

// What [iova, last] and a range of the IOMMU have in common, in whole units.
void add_common(std::uint64_t iova, std::uint64_t last, const IovaRange& range, std::uint64_t unit,
                Plan& plan) {
  const auto mask = unit - 1;
  const auto first = std::max(iova, range.first);
  const auto begin = (first + mask) & ~mask;
  const auto end = std::min(last, range.last);  // included
  if (begin < first || begin > end) return;
  const auto bytes = (end - begin + 1) & ~mask;
  if (bytes != 0) plan.pieces.push_back({begin, begin - iova, bytes});
}

}  // namespace

Result<Plan> plan(std::uint64_t iova, std::uint64_t bytes, const Offer& offer) {
  const auto unit = offer.unit();
  const auto last = iova + (bytes - 1);
  if (bytes == 0 || last < iova || ((iova | bytes) & (unit - 1)) != 0) {
    return fail("cannot map " + text_of(iova, bytes) + ": addresses and sizes are multiples of " +
                base::format_bytes(unit));
  }
  Plan made;
  if (offer.ranges.empty()) made.pieces.push_back({iova, 0, bytes});
  for (const auto& range : offer.ranges) add_common(iova, last, range, unit, made);
  if (made.pieces.empty()) {
    return fail("cannot map " + text_of(iova, bytes) + ": the IOMMU has no such addresses" +
                (offer.ranges.empty()
                     ? ""
                     : ", its last one is " + base::format_hex(offer.ranges.back().last)));
  }
  if (offer.entries && made.pieces.size() > *offer.entries) {
    return fail("cannot map " + text_of(iova, bytes) + ": it takes " +
                std::to_string(made.pieces.size()) + " mappings and " +
                std::to_string(*offer.entries) +
                " are left: see dma_entry_limit of the module vfio_iommu_type1");
  }
  made.left_out = bytes;
  for (const auto& piece : made.pieces) made.left_out -= piece.bytes;
  return made;
}

}  // namespace millrace::vfio

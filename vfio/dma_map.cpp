#include "vfio/dma_map.hpp"

#include <string>
#include <utility>

#include "base/hex.hpp"
#include "base/log.hpp"

namespace millrace::vfio {

using base::Result;

Result<std::uint64_t> DmaMap::add(std::uint64_t iova, const void* address, std::uint64_t bytes,
                                  Access access) {
  auto made = plan(iova, bytes, domain_.offer());
  if (!made) return base::Unexpected{made.error()};
  const auto* const start = static_cast<const std::byte*>(address);
  for (std::size_t i = 0; i < made->pieces.size(); ++i) {
    const auto& piece = made->pieces[i];
    if (auto ok = domain_.map(piece.iova, start + piece.offset, piece.bytes, access); !ok) {
      unmap(*made, i);
      return base::Unexpected{ok.error()};
    }
  }
  const auto left_out = made->left_out;
  // The kernel refused what overlaps, so there is no region of that address.
  regions_.emplace(iova, *std::move(made));
  return left_out;
}

// The first `count` pieces.
void DmaMap::unmap(const Plan& plan, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto& piece = plan.pieces[i];
    if (auto ok = domain_.unmap(piece.iova, piece.bytes); !ok) {
      spdlog::error("{}", ok.error().message);
    }
  }
}

void DmaMap::remove(std::uint64_t iova) {
  const auto found = regions_.find(iova);
  if (found == regions_.end()) return;
  unmap(found->second, found->second.pieces.size());
  regions_.erase(found);
}

void DmaMap::clear() {
  for (const auto& [iova, plan] : regions_) unmap(plan, plan.pieces.size());
  regions_.clear();
}

}  // namespace millrace::vfio

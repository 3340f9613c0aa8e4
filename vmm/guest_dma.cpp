#include "vmm/guest_dma.hpp"

#include <string>

#include "base/log.hpp"
#include "base/units.hpp"

namespace millrace::vmm {

using base::Result;

Result<std::unique_ptr<GuestDma>> GuestDma::make(vfio::Domain& domain, const GuestRam& ram) {
  std::unique_ptr<GuestDma> made{new GuestDma{domain, ram}};
  if (auto ok = made->map_new(); !ok) return base::Unexpected{ok.error()};
  ram.attach(*made);
  // What came in between.
  if (auto ok = made->map_new(); !ok) {
    ram.detach(*made);
    return base::Unexpected{ok.error()};
  }
  return made;
}

GuestDma::~GuestDma() {
  ram_.detach(*this);
  if (adding_.joinable()) adding_.join();
}

Result<void> GuestDma::map_new() {
  const std::lock_guard lock{mutex_};
  const auto regions = ram_.regions();
  for (; mapped_ < regions.size(); ++mapped_) {
    const auto& region = regions[mapped_];
    const auto left_out = map_.add(region.guest_address, region.host, region.size);
    if (!left_out) return base::Unexpected{left_out.error()};
    if (*left_out == 0) continue;
    // A guest's driver may use any of its memory, and would not know why nothing comes.
    map_.remove(region.guest_address);
    return base::fail(base::format_bytes(*left_out) +
                      " of the guest's memory lie where this host's IOMMU has no addresses: give "
                      "the guest less memory");
  }
  return {};
}

void GuestDma::memory_added() {
  // Pieces come one after the other, so the thread before is at its end.
  if (adding_.joinable()) adding_.join();
  adding_ = std::thread{[this] {
    if (auto ok = map_new(); !ok) {
      return spdlog::error("the guest is not told of the memory that was added: {}",
                           ok.error().message);
    }
    ram_.taken(*this);
  }};
}

}  // namespace millrace::vmm

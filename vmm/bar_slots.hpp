// BarSlots: parts of a host's function that a guest reaches as it reaches memory, without an exit:
// a BAR's pages, mapped here, at the guest's address of that BAR.
//
// Thread: any; it locks for itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.hpp"

namespace millrace::vmm {

class BarSlots {
 public:
  virtual ~BarSlots() = default;
  // Whole pages, which stay mapped here until remove(). Answers what to give back. Fails where
  // there is memory of the guest, or another BAR.
  virtual base::Result<unsigned> add(std::uint64_t guest_address, std::uint64_t size,
                                     std::byte* host) = 0;
  // No vCPU reaches it once this returns.
  virtual void remove(unsigned slot) = 0;
};

}  // namespace millrace::vmm

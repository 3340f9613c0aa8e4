// DmaMap: the regions of memory that a domain's devices have, by the addresses that they use for
// them: what was mapped, and with which bounds, so that it can be taken back.
//
// Thread: one at a time. Not for reactors (see domain.hpp).
#pragma once

#include <cstdint>
#include <map>

#include "base/result.hpp"
#include "vfio/domain.hpp"
#include "vfio/plan.hpp"

namespace millrace::vfio {

class DmaMap {
 public:
  // `domain` outlives this, and maps nothing else where this does.
  explicit DmaMap(Domain& domain) : domain_{domain} {}
  ~DmaMap() { clear(); }
  DmaMap(const DmaMap&) = delete;
  DmaMap& operator=(const DmaMap&) = delete;

  // All of a region or nothing; answers the bytes of it that no device reaches, because the IOMMU
  // has no addresses for them (0 nearly always). Fails with one line, as plan() and Domain::map().
  base::Result<std::uint64_t> add(std::uint64_t iova, const void* address, std::uint64_t bytes,
                                  Access access = Access::read_write);
  // The region that was added at `iova`; nothing happens where none was. No device reaches it once
  // this returns.
  void remove(std::uint64_t iova);
  void clear();

  [[nodiscard]] std::size_t regions() const { return regions_.size(); }

 private:
  void unmap(const Plan& plan, std::size_t count);

  Domain& domain_;
  std::map<std::uint64_t, Plan> regions_;  // by IOVA
};

}  // namespace millrace::vfio

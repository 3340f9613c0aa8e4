// DmaDoor: how memory gets into the reach of a device, and out of it. Both may take seconds for
// each GiB. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.hpp"

namespace millrace::daemon {

class DmaDoor {
 public:
  virtual ~DmaDoor() = default;
  // As vfio::Domain::map() and unmap(); whether the device only reads is the door's.
  virtual base::Result<void> map(std::uint64_t iova, const std::byte* address,
                                 std::uint64_t bytes) = 0;
  virtual base::Result<void> unmap(std::uint64_t iova, std::uint64_t bytes) = 0;
};

}  // namespace millrace::daemon

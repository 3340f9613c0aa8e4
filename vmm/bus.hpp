// Bus: finds the device behind a guest's access to a port or to memory that is no RAM.
//
// Ranges never overlap. They are mapped and unmapped while vCPUs run (a BAR that moves).
// Thread: any. A device is called from the vCPU thread of the access, several at once: it locks
// for itself, and never calls map() or unmap() while it holds a lock that its read() or write()
// takes. It may map and unmap other ranges from inside its read() or write(), never its own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <span>

#include "base/result.hpp"

namespace millrace::vmm {

// What answers accesses of 1 to 8 bytes, of any alignment. A guest's nonsense is answered like a
// machine does: reads give all ones, writes go nowhere.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  // `offset` from the start of the range; `data` comes filled with ones.
  virtual void read(std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

class Bus {
 public:
  // Fails where the range is empty, wraps around or overlaps another. `device` outlives the range.
  base::Result<void> map(std::uint64_t start, std::uint64_t size, BusDevice& device);
  // After it the device is not called any more for this range.
  void unmap(std::uint64_t start);
  // False: nobody is there; `data` is all ones then. An access across a range's end is nobody's.
  bool read(std::uint64_t address, std::span<std::byte> data);
  bool write(std::uint64_t address, std::span<const std::byte> data);

 private:
  struct Range {
    std::uint64_t start = 0, size = 0;
    BusDevice* device = nullptr;
    std::shared_mutex in_use;  // shared: an access is on its way; unmap() waits for those
    bool gone = false;         // unmapped; under in_use
  };
  // A range that holds all of the access, kept from unmap() until the lock goes; or none.
  struct Use {
    std::shared_ptr<Range> range;
    std::shared_lock<std::shared_mutex> lock;
  };
  Use find(std::uint64_t address, std::size_t size);

  std::shared_mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Range>> ranges_;
};

}  // namespace millrace::vmm

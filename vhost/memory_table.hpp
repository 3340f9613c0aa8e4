// MemoryTable: what a front-end said of its guest's memory, mapped. Thread: control.
//
// Every change makes a new snapshot and leaves the old one alive with whoever still holds it. A
// change that fails changes nothing. Descriptors are closed once mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/wire.hpp"
#include "virtio/memory.hpp"

namespace millrace::vhost {

class MemoryTable {
 public:
  // A bound on what one front-end may take of our 128 TiB of addresses, which all tenants share.
  static constexpr std::uint64_t bytes_max = 1ull << 43;

  // SET_MEM_TABLE: replaces all. `fds[i]` belongs to `regions[i]`.
  base::Result<void> replace(std::span<const wire::MemoryRegion> regions, std::span<base::Fd> fds);
  // ADD_MEM_REG. The same region again replaces its mapping.
  base::Result<void> add(const wire::MemoryRegion& region, const base::Fd& fd);
  // REM_MEM_REG: named by guest address, user address and size.
  base::Result<void> remove(const wire::MemoryRegion& region);
  void clear();

  // Null until the first region came, and after clear().
  [[nodiscard]] const std::shared_ptr<const virtio::GuestMemory>& snapshot() const {
    return snapshot_;
  }
  [[nodiscard]] bool empty() const { return regions_.empty(); }
  [[nodiscard]] unsigned count() const { return static_cast<unsigned>(regions_.size()); }
  [[nodiscard]] std::uint64_t bytes() const;

 private:
  base::Result<void> adopt(std::vector<virtio::Region> regions);

  std::vector<virtio::Region> regions_;
  std::shared_ptr<const virtio::GuestMemory> snapshot_;
};

}  // namespace millrace::vhost

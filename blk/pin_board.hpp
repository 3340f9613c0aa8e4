// PinBoard: which pages of guests' memory are pinned, or about to be.
//
// By the file that they are of and not by address: each device has a mapping and a snapshot of its
// own of the same memory. Threads: any; the reclaimer asks, the pinner writes.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "virtio/memory.hpp"

namespace millrace::blk {

class PinBoard {
 public:
  // All of `memory`. As often as it was added it has to be removed.
  void add(const virtio::GuestMemory& memory);
  void remove(const virtio::GuestMemory& memory);
  // Whether any byte of [guest_address, guest_address + bytes) of `memory` is on the board.
  [[nodiscard]] bool holds(const virtio::GuestMemory& memory, std::uint64_t guest_address,
                           std::uint64_t bytes) const;

 private:
  struct Range {
    std::uint64_t file_system, inode, begin, end;  // bytes of the file
    bool operator==(const Range&) const = default;
  };
  static Range range_of(const virtio::Region& region);

  mutable std::mutex mutex_;
  std::vector<Range> ranges_;
};

}  // namespace millrace::blk

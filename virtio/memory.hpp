// GuestMemory: an immutable snapshot of a guest's memory, and the only way from a guest address to
// a byte.
//
// Control builds a new snapshot for every change of the memory table and swaps it into the queues
// by command; the old one lives until its last holder lets go (shared_ptr, dropped on control).
// Threads: build on control; everything else on any thread, it is const.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mapping.hpp"
#include "base/result.hpp"

namespace millrace::virtio {

struct Region {
  std::uint64_t guest_address;  // first guest physical address
  std::uint64_t size;           // bytes, > 0
  std::uint64_t user_address;   // first address in the front-end's own address space
  std::shared_ptr<const base::Mapping> mapping;  // mapping->data() is guest_address
};

class GuestMemory {
 public:
  // Sorts and checks: no overlap in guest or user addresses, no overflow, at most
  // limits::memory_slots_max regions. An empty table is legal: nothing can be translated.
  static base::Result<std::shared_ptr<const GuestMemory>> build(std::vector<Region> regions);

  // Where a caller last hit: keep one per queue. Speeds up translate(), changes no result.
  struct Hint {
    std::uint32_t last = 0;
  };
  // The longest prefix of [address, address + size) that is contiguous here; empty if the first
  // byte is not in memory or size is 0. The caller loops for the rest.
  [[nodiscard, gnu::always_inline]] std::span<std::byte> translate(std::uint64_t address,
                                                                   std::uint64_t size,
                                                                   Hint& hint) const noexcept {
    // Unsigned wrap makes an address below the region's a huge offset.
    if (hint.last < span_count_ &&
        address - spans_[hint.last].guest_address < spans_[hint.last].size) [[likely]] {
      return slice(spans_[hint.last], address, size);
    }
    return search(address, size, hint);
  }
  // All of [address, address + size) in user addresses (ring addresses of vhost-user), inside one
  // region; nullptr otherwise.
  [[nodiscard]] std::byte* from_user(std::uint64_t address, std::uint64_t size) const noexcept;
  // The guest address of a user address, for the dirty log; false if outside.
  [[nodiscard]] bool user_to_guest(std::uint64_t address, std::uint64_t& guest) const noexcept;
  // True once any of its mappings lost its file's pages (SIGBUS). See base::Mapping.
  [[nodiscard]] bool faulted() const noexcept;
  [[nodiscard]] std::span<const Region> regions() const noexcept { return regions_; }
  // One past the last guest address.
  [[nodiscard]] std::uint64_t guest_end() const noexcept;

 private:
  struct Span {  // what translate() needs of a region, close together
    std::uint64_t guest_address, size;
    std::byte* data;
  };
  explicit GuestMemory(std::vector<Region> regions);
  [[nodiscard]] static std::span<std::byte> slice(const Span& span, std::uint64_t address,
                                                  std::uint64_t size) noexcept {
    const std::uint64_t offset = address - span.guest_address;
    return {span.data + offset, std::min(size, span.size - offset)};
  }
  [[nodiscard]] std::span<std::byte> search(std::uint64_t address, std::uint64_t size,
                                            Hint& hint) const noexcept;
  [[nodiscard]] const Region* find_user(std::uint64_t address) const noexcept;
  std::vector<Region> regions_;  // by guest address
  std::vector<Span> spans_;      // the same order
  std::uint32_t span_count_ = 0;
  std::vector<std::uint32_t> by_user_;  // indices into regions_, by user address
};

}  // namespace millrace::virtio

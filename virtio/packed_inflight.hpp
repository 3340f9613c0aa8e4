// PackedInflight: a packed queue's part of the inflight region (vhost-user, "Inflight I/O
// tracking", packed virtqueue): a copy of every descriptor that we took and have not given back,
// since the ring's own are overwritten by used ones.
//
// The region is written by us and read only when a queue opens: the front-end can change it at any
// time, and what it says is then copied once and bounded. The lists that we follow are our own.
// Thread: open() on control, the rest on the owning reactor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "virtio/fault.hpp"
#include "virtio/wire/inflight.hpp"
#include "virtio/wire/ring.hpp"

namespace millrace::virtio {

// A place in a packed ring: an index, and the lap's wrap counter (1 in the first lap).
struct PackedPlace {
  std::uint16_t index = 0;
  bool wrap = true;

  void advance(std::uint32_t slots, std::uint32_t size) noexcept {
    const std::uint32_t next = index + slots;
    if (next >= size) wrap = !wrap;
    index = static_cast<std::uint16_t>(next >= size ? next - size : next);
  }
  // Slots from here to `to`, on two laps of a ring of that size.
  [[nodiscard]] std::uint32_t distance(PackedPlace to, std::uint32_t size) const noexcept {
    const std::uint32_t from = index + (wrap ? 0 : size), end = to.index + (to.wrap ? 0 : size);
    return end >= from ? end - from : end + 2 * size - from;
  }
  friend bool operator==(const PackedPlace&, const PackedPlace&) = default;
};

// A buffer to serve again.
struct PackedResubmit {
  std::uint16_t entry = 0;  // its first entry in the region
  std::vector<wire::PackedDescriptor> descriptors;
};

class PackedInflight {
 public:
  PackedInflight() = default;  // tracks nothing

  // Takes the region over for the ring at `ring`. A fresh region is initialised for `place`;
  // otherwise `place` becomes the place of the next used descriptor and `resubmit` gets the buffers
  // to serve again, in the order in which they were first taken.
  static base::Result<PackedInflight, Fault> open(wire::InflightPacked* region, std::uint32_t size,
                                                  wire::PackedDescriptor* ring, PackedPlace& place,
                                                  std::vector<PackedResubmit>& resubmit);
  [[nodiscard]] bool tracks() const noexcept { return region_ != nullptr; }

  // Before the buffer is handed out: keeps its descriptors, returns its first entry.
  [[nodiscard]] std::uint16_t take(std::span<const wire::PackedDescriptor> descriptors) noexcept;
  // The buffer taken last is taken back unused.
  void untake(std::uint16_t entry) noexcept;

  // Giving a batch: give() for each buffer, then prepare() with the place after it, then the ring's
  // own flags, then commit() for each buffer, then finish().
  void give(std::uint16_t entry) noexcept;
  void prepare(PackedPlace used) noexcept;
  void commit(std::uint16_t entry) noexcept;
  void finish() noexcept;

 private:
  struct Image;  // a copy of the region, made once
  PackedInflight(wire::InflightPacked* region, std::uint32_t size)
      : region_{region},
        entries_{reinterpret_cast<wire::InflightPackedEntry*>(region + 1)},
        size_{size},
        next_(size),
        last_(size) {}
  void initialise(PackedPlace place);
  Fault recover(wire::PackedDescriptor* ring, PackedPlace& place,
                std::vector<PackedResubmit>& resubmit);
  Fault settle_last_batch(wire::PackedDescriptor* ring, PackedPlace& place);
  Fault find_free(Image& image);
  Fault find_inflight(const Image& image, std::vector<PackedResubmit>& resubmit);
  void link_free(std::uint16_t entry) noexcept;
  void store_heads(std::uint16_t free_head, std::uint16_t old_free_head) noexcept;
  void store_places(PackedPlace used, PackedPlace old) noexcept;

  wire::InflightPacked* region_ = nullptr;
  wire::InflightPackedEntry* entries_ = nullptr;
  std::uint32_t size_ = 0;
  std::vector<std::uint16_t> next_, last_;  // our own copy of the links
  std::uint16_t free_head_ = 0, old_free_head_ = 0;
  PackedPlace used_, old_used_;
  std::uint64_t counter_ = 0;
};

}  // namespace millrace::virtio

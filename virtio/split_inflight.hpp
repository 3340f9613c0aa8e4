// SplitInflight: a split queue's part of the inflight region (vhost-user, "Inflight I/O tracking",
// split virtqueue). It survives us; a successor serves what we had taken and not given back.
//
// The region is written by us and read only when a queue opens: the front-end can change it at any
// time, and what it says is then copied once and bounded.
// Thread: open() on control, the rest on the owning reactor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "virtio/fault.hpp"
#include "virtio/shared.hpp"
#include "virtio/wire/inflight.hpp"

namespace millrace::virtio {

class SplitInflight {
 public:
  SplitInflight() = default;  // tracks nothing

  // Takes the region over at `used`, the ring's used index. A fresh region is initialised;
  // otherwise `resubmit` gets the heads to serve again, in the order in which they were first
  // taken.
  static base::Result<SplitInflight, Fault> open(wire::InflightSplit* region, std::uint32_t size,
                                                 std::uint16_t used,
                                                 std::vector<std::uint16_t>& resubmit);
  [[nodiscard]] bool tracks() const noexcept { return region_ != nullptr; }

  // Before the buffer is handed out; and when it is taken back unused.
  [[gnu::always_inline]] void take(std::uint16_t head) noexcept {
    store_once(&entries_[head].counter, counter_++);
    store_release(&entries_[head].inflight, std::uint8_t{1});
  }
  void untake(std::uint16_t head) noexcept;
  // Before the used index is stored, for each buffer of the batch; and after, for all of them.
  void give(std::uint16_t head) noexcept;
  void commit(std::span<const std::uint16_t> heads, std::uint16_t used) noexcept;

 private:
  explicit SplitInflight(wire::InflightSplit* region)
      : region_{region}, entries_{reinterpret_cast<wire::InflightSplitEntry*>(region + 1)} {}
  void initialise(std::uint32_t size, std::uint16_t used);
  Fault recover(std::uint32_t size, std::uint16_t used, std::vector<std::uint16_t>& resubmit);

  wire::InflightSplit* region_ = nullptr;
  wire::InflightSplitEntry* entries_ = nullptr;
  std::uint64_t counter_ = 0;
  std::uint16_t last_batch_head_ = 0;
};

}  // namespace millrace::virtio

// InflightRegion: the memory in which a front-end keeps, across our death, which buffers we had
// taken (vhost-user, GET_INFLIGHT_FD and SET_INFLIGHT_FD). One part for each queue; see
// SplitInflight and PackedInflight for what is in it. Its contents are the front-end's word and
// never trusted. Thread: control, but for what a queue's ring does with its own part.
#pragma once

#include <cstdint>
#include <memory>

#include "base/mapping.hpp"
#include "base/result.hpp"
#include "virtio/wire/inflight.hpp"

namespace millrace::virtio {

class InflightRegion {
 public:
  // Bytes for so many queues of `queue_size` entries; 0 where the arguments are out of range
  // (GET_INFLIGHT_FD answers it). New memory of that size must be zero.
  [[nodiscard]] static std::uint64_t size_for(std::uint32_t queues, std::uint32_t queue_size,
                                              bool packed) noexcept;
  // The size of ring that a region of ours has room for, where its front-end asked for
  // `queue_size`: QEMU asks for its device's queue-size and lets the guest have up to this many
  // entries.
  [[nodiscard]] static std::uint32_t room_for(std::uint32_t queue_size) noexcept;
  // Takes over the region at `offset` of `mapping`. One line of error where it does not fit.
  static base::Result<std::shared_ptr<InflightRegion>> attach(
      std::shared_ptr<const base::Mapping> mapping, std::uint64_t offset, std::uint32_t queues,
      std::uint32_t queue_size, bool packed);

  [[nodiscard]] std::uint32_t queues() const noexcept { return queues_; }
  [[nodiscard]] std::uint32_t queue_size() const noexcept { return queue_size_; }
  [[nodiscard]] bool packed() const noexcept { return packed_; }
  // True once its file's pages are gone. See base::Mapping.
  [[nodiscard]] bool faulted() const noexcept { return mapping_->faulted(); }

  // A queue's part; nullptr where the region has none for such a queue.
  [[nodiscard]] wire::InflightSplit* split(std::uint32_t queue, std::uint32_t size) const noexcept;
  [[nodiscard]] wire::InflightPacked* packed(std::uint32_t queue,
                                             std::uint32_t size) const noexcept;

 private:
  InflightRegion() = default;
  [[nodiscard]] std::byte* part(std::uint32_t queue, std::uint32_t size) const noexcept;

  std::shared_ptr<const base::Mapping> mapping_;
  std::byte* data_ = nullptr;
  std::uint64_t stride_ = 0;
  std::uint32_t queues_ = 0, queue_size_ = 0;
  bool packed_ = false;
};

}  // namespace millrace::virtio

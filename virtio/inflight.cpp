#include "virtio/inflight.hpp"

#include <algorithm>

#include "virtio/limits.hpp"

namespace millrace::virtio {
namespace {

constexpr std::uint32_t queues_max = 1024;

constexpr std::uint64_t stride_of(std::uint32_t queue_size, bool packed) {
  const std::uint64_t bytes =
      packed ? sizeof(wire::InflightPacked) + queue_size * sizeof(wire::InflightPackedEntry)
             : sizeof(wire::InflightSplit) + queue_size * sizeof(wire::InflightSplitEntry);
  return (bytes + wire::inflight_align - 1) / wire::inflight_align * wire::inflight_align;
}

}  // namespace

std::uint64_t InflightRegion::size_for(std::uint32_t queues, std::uint32_t queue_size,
                                       bool packed) noexcept {
  if (queues == 0 || queues > queues_max) return 0;
  if (queue_size < limits::queue_size_min || queue_size > limits::queue_size_max) return 0;
  return queues * stride_of(queue_size, packed);
}

std::uint32_t InflightRegion::room_for(std::uint32_t queue_size) noexcept {
  constexpr std::uint32_t ring_of_qemu = 1024;
  return std::max(queue_size, ring_of_qemu);
}

base::Result<std::shared_ptr<InflightRegion>> InflightRegion::attach(
    std::shared_ptr<const base::Mapping> mapping, std::uint64_t offset, std::uint32_t queues,
    std::uint32_t queue_size, bool packed) {
  CHECK(mapping != nullptr);
  const std::uint64_t size = size_for(queues, queue_size, packed);
  if (size == 0) return base::fail("inflight region for an impossible number or size of queues");
  if (offset > mapping->size() || size > mapping->size() - offset) {
    return base::fail("inflight region is smaller than its queues need");
  }
  std::byte* data = mapping->data() + offset;
  if (reinterpret_cast<std::uintptr_t>(data) % alignof(std::uint64_t) != 0) {
    return base::fail("inflight region is not aligned to 8 bytes");
  }
  std::shared_ptr<InflightRegion> region{new InflightRegion};
  region->mapping_ = std::move(mapping);
  region->data_ = data;
  region->stride_ = stride_of(queue_size, packed);
  region->queues_ = queues;
  region->queue_size_ = queue_size;
  region->packed_ = packed;
  return region;
}

std::byte* InflightRegion::part(std::uint32_t queue, std::uint32_t size) const noexcept {
  if (queue >= queues_ || size > queue_size_) return nullptr;
  return data_ + queue * stride_;
}

wire::InflightSplit* InflightRegion::split(std::uint32_t queue, std::uint32_t size) const noexcept {
  return packed_ ? nullptr : reinterpret_cast<wire::InflightSplit*>(part(queue, size));
}

wire::InflightPacked* InflightRegion::packed(std::uint32_t queue,
                                             std::uint32_t size) const noexcept {
  return packed_ ? reinterpret_cast<wire::InflightPacked*>(part(queue, size)) : nullptr;
}

}  // namespace millrace::virtio

// DeviceShape: what a guest is shown of a back-end's offer: features, configuration space, queues.
// Thread: any; plain values.
//
// Everything is passed through but what virtio-pci here cannot carry: notification data (a doorbell
// signals, it has no value), and bits that only a legacy driver, an IOMMU or a standby pair would
// use. Without VIRTIO_NET_F_CTRL_VQ nobody serves a control queue, so what needs one is not shown.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.hpp"

namespace millrace::vmm {

enum class DeviceKind { net, blk, rng, console, balloon, mem };

// What a back-end said when it was connected to.
struct BackendOffer {
  std::uint64_t features = 0, protocol = 0;
  std::uint64_t queues = 0;        // GET_QUEUE_NUM: virtqueues, or pairs; 0: not said
  std::vector<std::byte> config;   // empty: it has none to give
  std::uint64_t memory_slots = 8;  // regions of guest memory that it takes; 8: not asked for
};

struct ShapeOptions {
  DeviceKind kind = DeviceKind::blk;
  std::optional<std::array<std::uint8_t, 6>> mac;  // net: shown instead of the back-end's
  unsigned queues = 0;  // net: queue pairs, blk: queues; 0: all that the back-end has
};

struct DeviceShape {
  std::uint64_t features = 0;
  std::vector<std::byte> config;
  unsigned queues = 0;  // virtqueues, the control queue included
  unsigned vrings = 0;  // of the back-end; more than `queues` where fewer were asked for
  unsigned pairs = 0;   // net: shown
  // The back-end's number of a virtqueue: only a control queue's differs, where fewer pairs are
  // shown than there are (virtio 1.2 §5.1.2). `features`: negotiated.
  [[nodiscard]] unsigned vring_of(unsigned queue, std::uint64_t features) const;
};

// Bytes of configuration that a device of this kind is asked for.
[[nodiscard]] std::size_t config_size_of(DeviceKind kind);

// The one field of a kind's configuration space that is a driver's to write, where it has one.
struct WritableField {
  std::uint32_t offset;
  std::size_t size;  // bytes, at most 4
};
[[nodiscard]] std::optional<WritableField> writable_field(DeviceKind kind, std::uint64_t features);

// Fails where the offer makes no sense, or is less than what is asked for.
base::Result<DeviceShape> shape_of(const BackendOffer& offer, const ShapeOptions& options);

}  // namespace millrace::vmm

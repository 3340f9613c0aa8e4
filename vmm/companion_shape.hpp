// The shapes of a guest's companions: entropy, console ports, balloon, memory
// (see device_shape.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "vmm/device_shape.hpp"

namespace millrace::vmm {

// Bytes of configuration of a kind that is neither net nor blk.
[[nodiscard]] std::size_t companion_config_size(DeviceKind kind);
// `ring_bits`: those of a feature word that concern rings.
base::Result<DeviceShape> companion_shape(const BackendOffer& offer, DeviceKind kind,
                                          std::uint64_t ring_bits);

}  // namespace millrace::vmm

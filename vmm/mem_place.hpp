// What the back-end of a memory device (virtio-mem, virtio 1.2 §5.15) is told of the guest, since
// it cannot know it: where the region lies, and in which blocks it comes. Thread: any.
#pragma once

#include <cstddef>
#include <vector>

#include "vmm/ram.hpp"

namespace millrace::vmm {

// The first fields of the device's configuration space, as they are written to the back-end.
[[nodiscard]] std::vector<std::byte> mem_place_of(const RamRegion& region);

}  // namespace millrace::vmm

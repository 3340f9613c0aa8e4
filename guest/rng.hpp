// The entropy device, virtio 1.2 §5.4: one queue of buffers that are filled with random bytes of
// the host's kernel. Thread: control.
#pragma once

#include "guest/device.hpp"

namespace millrace::guest {

// Fails where the host's own generator is not ready: a reactor must never wait for it.
base::Result<std::unique_ptr<Device>> make_rng(const std::string& name, const RngSettings& settings,
                                               const Means& means);

}  // namespace millrace::guest

// VhostDevice: a virtio device of a guest whose queues a vhost-user back-end serves: the PCI
// function in front of a BackendLink.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.hpp"
#include "vmm/device_shape.hpp"
#include "vmm/doorbells.hpp"
#include "vmm/interrupts.hpp"
#include "vmm/ram.hpp"
#include "vmm/virtio_pci.hpp"

namespace millrace::vmm {

class BackendLink;

struct VhostDeviceOptions {
  std::string socket;
  std::optional<std::array<std::uint8_t, 6>> mac{};  // net: shown instead of the back-end's
  unsigned queues = 0;             // net: queue pairs, blk: queues; 0: what the back-end has
  std::uint16_t queue_size = 256;  // the most that a driver may choose, a power of two
  unsigned memory = 0;             // mem: which of the guest's managed regions it is
  bool wait = true;                // false: make() fails where nobody serves the socket
  int cancel = -1;                 // an eventfd: make() gives up once it is readable
  // The back-end came or went (`why`). From a thread of the device, which must not be waited for.
  std::function<void(bool connected, const std::string& why)> on_change{};
  bool confined = false;  // in a sandbox: the device's thread narrows what it may do
};

class VhostDevice final : public VirtioPci {
 public:
  // Connects to the back-end, and waits for it where told so, since nothing is known of the device
  // before. `doorbells`, `interrupts` and `ram` outlive the device. Fails with one line: no such
  // back-end, an offer that cannot be used, a bad option, no descriptors left.
  static base::Result<std::unique_ptr<VhostDevice>> make(DeviceKind kind,
                                                         const VhostDeviceOptions& options,
                                                         Doorbells& doorbells,
                                                         Interrupts& interrupts,
                                                         const GuestRam& ram);
  // Whether a back-end is connected now. Thread: any.
  [[nodiscard]] bool connected() const;
  // Virtqueues that the guest sees.
  [[nodiscard]] unsigned queues() const;

 private:
  VhostDevice(DeviceKind kind, Parts parts, Doorbells& doorbells, const BackendLink& link);
  const BackendLink& link_;  // the base class owns it
};

}  // namespace millrace::vmm

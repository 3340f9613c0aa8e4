// net::Device: virtio-net, a guest's queue pairs seen as one switch port. Thread: control.
#pragma once

#include <functional>
#include <memory>

#include "net/config.hpp"
#include "net/status.hpp"
#include "switch/fabric.hpp"
#include "virtio/device_base.hpp"

namespace millrace::net {

// Makes the device and its switch port (`ready` runs when all reactors know the port).
// `pool` and `fabric` must outlive it.
class Device : public virtio::DeviceBase {
 public:
  static base::Result<std::unique_ptr<Device>> make(const Config& config, base::ReactorPool& pool,
                                                    vswitch::Fabric& fabric,
                                                    std::function<void()> ready);
  using DeviceBase::DeviceBase;
  [[nodiscard]] virtual const Config& net_config() const = 0;
  [[nodiscard]] virtual vswitch::PortId port() const = 0;
  // A copy of the numbers as of now; traffic of each queue over all its starts.
  [[nodiscard]] virtual Status status() const = 0;
  // Removes the switch port; needs all queues stopped. `done` runs, then it may be destroyed.
  virtual void close(std::function<void()> done) = 0;
};

}  // namespace millrace::net

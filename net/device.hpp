// net::Device: virtio-net, a guest's queue pairs seen as one switch port. Thread: control.
#pragma once

#include <functional>
#include <memory>

#include "net/config.hpp"
#include "net/status.hpp"
#include "switch/direct_sink.hpp"
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
  // What the driver is told of its link (VIRTIO_NET_S_LINK_UP, virtio 1.2 §5.1.4); up until then.
  // Nothing else changes: a driver that sends all the same is served. A change is told by
  // CONFIG_CHANGE, to a front-end that leaves the configuration space to us.
  virtual void set_link(bool up) = 0;
  // Whether its guest's frames may be held by the switch's ports beyond their delivery, by a device
  // that reads them where they are. Off at first.
  virtual void lend(bool lends) = 0;
  // The guest's memory, of each front-end: `hook` hears of every change, at once of what is there.
  // Null: there is none any more. What it names stays as long as somebody has it.
  using MemoryHook = std::function<void(const std::shared_ptr<const virtio::GuestMemory>&)>;
  virtual void on_memory(MemoryHook hook) = 0;
  // The first pair's receive queue is given to a device that fills its buffers by itself: `tie`
  // when it can, `untie` before it stops, is disabled or has other memory, which wait for what that
  // is given. Before any queue starts, which then stay on their reactors.
  struct Direct {
    std::function<void(vswitch::DirectSink& sink)> tie;
    std::function<void(std::function<void()> done)> untie;
  };
  virtual void be_direct(Direct direct) = 0;
  // The device is there again, or another one: `tie` is called once more where it can be.
  virtual void tie_again() = 0;
  // Removes the switch port; needs all queues stopped. `done` runs, then it may be destroyed.
  virtual void close(std::function<void()> done) = 0;
};

}  // namespace millrace::net

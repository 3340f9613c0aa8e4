// VirtioBackend: who serves a virtio device's queues, as the device's PCI function sees it: offers,
// configuration space, and queues that start and stop. BackendLink is the real one.
//
// Thread: any, and the device's lock may be held: no call blocks, but for write_config(),
// refresh_config() and close(). What takes time is answered later through the Listener, from the
// back-end's own thread and with no lock of the back-end held.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace millrace::vmm {

// A virtqueue as the driver set it up. Addresses are the guest's and not checked.
struct VirtQueue {
  unsigned index = 0;
  std::uint16_t size = 0;
  std::uint64_t descriptors = 0, driver = 0, device = 0;
  int kick = -1;  // stays open until the queue has stopped
  int call = -1;  // -1: the driver wants no interrupt
};

class VirtioBackend {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    // The configuration space is this now.
    virtual void config_changed(std::span<const std::byte> config) = 0;
    // The device cannot go on before the driver resets it.
    virtual void needs_reset() = 0;
    // Nobody touches the guest's memory any more: stop() is done, or stop_queue() of that queue.
    virtual void stopped() = 0;
    virtual void queue_stopped(unsigned index) = 0;
  };

  virtual ~VirtioBackend() = default;
  // Events go to `listener` from now until close(), which stops everything first.
  virtual void open(Listener& listener) = 0;
  virtual void close() = 0;

  // Device and ring bits. May change while the device is not active: another back-end came.
  [[nodiscard]] virtual std::uint64_t features() const = 0;
  // Of the device's life: virtqueues, largest size of one, configuration space at the start.
  [[nodiscard]] virtual unsigned queues() const = 0;
  [[nodiscard]] virtual std::uint16_t queue_size_max() const = 0;
  [[nodiscard]] virtual std::vector<std::byte> config() const = 0;
  // The driver is about to read the configuration space. Where fields of it change without notice
  // (virtio-mem), the listener is told of what is new before this returns. May wait for the
  // back-end; called without the device's lock.
  virtual void refresh_config() {}
  // The driver's write. True: it is in effect. Waits for the back-end; called without the device's
  // lock.
  virtual bool write_config(std::uint32_t offset, std::span<const std::byte> bytes) = 0;

  // DRIVER_OK: starts these queues with these features.
  virtual void activate(std::uint64_t features, std::span<const VirtQueue> queues) = 0;
  virtual void stop() = 0;
  // While active. One stop at a time for a queue, and none with a stop() under way.
  virtual void start_queue(const VirtQueue& queue) = 0;
  virtual void stop_queue(unsigned index) = 0;
  virtual void set_call(unsigned index, int call) = 0;
};

}  // namespace millrace::vmm

// VirtioRegisters: the common configuration structure of a virtio-pci device and the state machine
// behind it: device status, features, queues (virtio 1.2 §2.1, §2.2, §2.6, §4.1.4.3).
//
// A reset takes time, since a back-end has to let go of the guest's memory: device_status stays
// what it was until then, and so does queue_reset for one queue. What a driver writes meanwhile is
// ignored. Nothing that a guest writes is an error of ours: what the specification forbids has no
// effect.
// Thread: its owner's lock is held.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "virtio/wire/pci.hpp"
#include "vmm/virtio_backend.hpp"

namespace millrace::vmm {

class VirtioRegisters {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // How many interrupt vectors there are, and what to signal for one; -1 for none such.
    [[nodiscard]] virtual unsigned vectors() const = 0;
    [[nodiscard]] virtual int vector_fd(std::uint16_t vector) const = 0;
    [[nodiscard]] virtual int kick_fd(unsigned queue) const = 0;
    // A queue was enabled, or is no more: its doorbell may come or must go.
    virtual void queue_enabled(unsigned queue, bool enabled) = 0;
    // The device is reset: pending interrupts are forgotten.
    virtual void reset_done() = 0;
  };

  VirtioRegisters(VirtioBackend& backend, Owner& owner);

  // The guest's accesses, of any size and place.
  void read(std::uint64_t offset, std::span<std::byte> data) const;
  void write(std::uint64_t offset, std::span<const std::byte> data);

  // What the back-end reports.
  void backend_stopped();
  void backend_queue_stopped(unsigned index);
  // Whether the driver is to be told.
  bool backend_needs_reset();
  bool config_changed();

  [[nodiscard]] bool enabled(unsigned queue) const;
  [[nodiscard]] std::uint16_t config_vector() const { return config_vector_; }

 private:
  struct Queue {
    std::uint16_t size = 0, vector = virtio::wire::pci_no_vector;
    std::uint64_t descriptors = 0, driver = 0, device = 0;
    bool enabled = false, resetting = false;
  };

  [[nodiscard]] virtio::wire::PciCommon image() const;
  void write_device(std::uint64_t offset, std::uint64_t value, std::size_t size);
  void write_queue(Queue& queue, std::uint64_t offset, std::uint64_t value, std::size_t size);
  void write_status(std::uint8_t value);
  void reset();
  void enable(Queue& queue);
  void start_reset_of(Queue& queue);
  void forget(unsigned index);
  void activate();
  [[nodiscard]] bool features_acceptable() const;
  [[nodiscard]] bool running() const;
  [[nodiscard]] std::uint16_t vector_of(std::uint64_t value) const;
  [[nodiscard]] VirtQueue set_up(unsigned index) const;
  [[nodiscard]] unsigned index_of(const Queue& queue) const;

  VirtioBackend& backend_;
  Owner& owner_;
  std::vector<Queue> queues_;
  std::uint32_t device_select_ = 0, driver_select_ = 0;
  std::uint64_t driver_features_ = 0;
  std::uint16_t config_vector_ = virtio::wire::pci_no_vector, queue_select_ = 0;
  std::uint8_t status_ = 0, generation_ = 0;
  bool resetting_ = false, active_ = false;  // active: the back-end was given the queues
};

}  // namespace millrace::vmm

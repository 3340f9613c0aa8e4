// VirtioPci: a modern virtio device as a PCI function (virtio 1.2 §4.1): capabilities, the BAR that
// they name, MSI-X, and a doorbell for each queue. No virtqueue is ever looked at.
//
// A kick is a write to the queue's own address in the notify structure; while the queue is enabled
// and the BAR is mapped, that address is a Doorbell whose eventfd the back-end has. A write that
// comes here all the same (another size, the window, no doorbell left) signals the same eventfd.
// BAR 0 holds the MSI-X table, BAR 4 (64 bits) the structures.
// Thread: see PciFunction; the back-end's events come from its own thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/doorbells.hpp"
#include "vmm/interrupts.hpp"
#include "vmm/msix.hpp"
#include "vmm/pci.hpp"
#include "vmm/virtio_backend.hpp"
#include "vmm/virtio_registers.hpp"

namespace millrace::vmm {

class VirtioPci : public PciFunction,
                  private VirtioRegisters::Owner,
                  private VirtioBackend::Listener,
                  private BusDevice {
 public:
  static constexpr unsigned table_bar = 0, structures_bar = 4;
  // Inside BAR 4. Each structure begins at a page of its own.
  static constexpr std::uint32_t common_at = 0x0000, isr_at = 0x1000, device_at = 0x2000,
                                 notify_at = 0x3000, structures_size = 0x4000;
  static constexpr std::uint32_t notify_step = 4;  // bytes between the addresses of two queues
  static constexpr unsigned queues_max = 256;

  // What a virtio device owns besides its registers.
  struct Parts {
    std::unique_ptr<VirtioBackend> backend;
    std::unique_ptr<Msix> msix;
    std::vector<base::Fd> kicks;  // one eventfd a queue
  };
  // One vector for each queue and one for the configuration. Fails where descriptors or interrupt
  // routes are used up.
  static base::Result<Parts> make_parts(std::unique_ptr<VirtioBackend> backend,
                                        Interrupts& interrupts);

  // `type`: virtio 1.2 §5. `class_code`: see PciIdentity. `doorbells` outlives it.
  VirtioPci(std::uint8_t type, std::uint32_t class_code, Parts parts, Doorbells& doorbells);
  // Stops the back-end first.
  ~VirtioPci() override;

 private:
  // PciFunction.
  void bar_mapped(unsigned index, std::uint64_t address) override;
  void bar_unmapped(unsigned index, std::uint64_t address) override;
  void config_written(std::uint32_t offset, std::size_t size) override;
  void config_about_to_be_read(std::uint32_t offset, std::size_t size) override;
  void device_reset() override;

  // BusDevice: BAR 4.
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

  // VirtioRegisters::Owner; the lock is held.
  [[nodiscard]] unsigned vectors() const override { return msix_->vectors(); }
  [[nodiscard]] int vector_fd(std::uint16_t vector) const override {
    return msix_->eventfd(vector);
  }
  [[nodiscard]] int kick_fd(unsigned queue) const override { return kicks_[queue].get(); }
  void queue_enabled(unsigned queue, bool enabled) override;
  void reset_done() override { isr_ = 0; }

  // VirtioBackend::Listener.
  void config_changed(std::span<const std::byte> config) override;
  void needs_reset() override;
  void stopped() override;
  void queue_stopped(unsigned index) override;

  void add_capabilities();
  std::uint8_t add_structure(virtio::wire::PciCapability type, std::uint32_t offset,
                             std::uint32_t size, std::span<const std::byte> extra);
  // What the window's registers ask for, where that is an access to a structure.
  struct Access {
    std::uint32_t offset;
    std::size_t size;
  };
  [[nodiscard]] std::optional<Access> window_access() const;
  void write_config_space(std::uint64_t offset, std::span<const std::byte> data);
  void ring(std::uint64_t offset, std::size_t size);
  void add_doorbell(unsigned queue);
  void remove_doorbell(unsigned queue);
  void interrupt_for_config();

  const std::unique_ptr<VirtioBackend> backend_;
  const std::unique_ptr<Msix> msix_;
  const std::vector<base::Fd> kicks_;
  Doorbells& doorbells_;
  std::uint8_t msix_capability_ = 0, window_ = 0;  // offsets in configuration space

  mutable std::mutex mutex_;  // of all that follows
  VirtioRegisters registers_;
  std::vector<std::byte> space_;  // the device's configuration
  std::uint8_t isr_ = 0;
  bool said_slow_ = false;
  std::optional<std::uint64_t> notify_address_;         // while BAR 4 is mapped
  std::vector<std::optional<std::uint64_t>> doorbell_;  // by queue: where its doorbell is
};

}  // namespace millrace::vmm

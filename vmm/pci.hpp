// PciFunction: one PCI function as the guest sees it: configuration space, BARs, capabilities.
//
// Derived classes fill in identity, BARs and capabilities in their constructor, before the function
// is put on a bus. Configuration accesses come from vCPU threads; PciRoot serialises those of one
// function, so the hooks below never run twice at once for the same function. BAR accesses (a
// BusDevice) are not serialised with them.
// PCI Local Bus 3.0 §6, PCI Express Base 4.0 §7.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/check.hpp"
#include "vmm/bus.hpp"

namespace millrace::vmm {

struct PciIdentity {
  std::uint16_t vendor = 0, device = 0;
  std::uint8_t revision = 0;
  std::uint32_t class_code = 0;  // 24 bits: class, subclass, interface
  std::uint16_t subsystem_vendor = 0, subsystem = 0;
};

// What lies between a function and the memory bus: the windows of a bridge.
class PciGate {
 public:
  virtual ~PciGate() = default;
  // Whether accesses to all of these bytes come through now.
  [[nodiscard]] virtual bool forwards(std::uint64_t address, std::uint64_t size) const = 0;
};

class PciFunction {
 public:
  static constexpr std::size_t config_size = 4096;
  static constexpr unsigned bars = 6;

  explicit PciFunction(const PciIdentity& identity);
  virtual ~PciFunction() = default;
  PciFunction(const PciFunction&) = delete;
  PciFunction& operator=(const PciFunction&) = delete;

  // 1, 2 or 4 bytes inside one double word. Called by PciRoot.
  void config_read(std::uint32_t offset, std::span<std::byte> data);
  void config_write(std::uint32_t offset, std::span<const std::byte> data);

  // Memory bus on which enabled BARs are mapped, given when the function is put into its slot.
  // Called by PciRoot; nullptr takes the mappings away. `gate` outlives the stay; none: no bridge.
  void set_memory_bus(Bus* bus, const PciGate* gate = nullptr);
  // The gate forwards something else than before.
  void gate_changed() { update_mappings(); }
  // A reset of the bus: all that a guest wrote is gone, and the device stands as it was made.
  void reset();
  // What the platform gave this BAR; the guest may move it.
  void assign_bar(unsigned index, std::uint64_t address);
  struct BarInfo {
    std::uint64_t size = 0, address = 0;
    bool wide = false;  // 64 bits: takes the next slot too
  };
  [[nodiscard]] BarInfo bar(unsigned index) const;  // size 0: there is none
  // The guest's driver has made it one.
  [[nodiscard]] bool is_bus_master() const;

 protected:
  // Memory BAR; `size` a power of two, 4 KiB at least; `wide`: 64 bits, prefetchable.
  void add_memory_bar(unsigned index, std::uint64_t size, bool wide, BusDevice& device);
  // Appends a capability; `body` follows the two header bytes; `writable` marks the bits that the
  // guest may change (same length as body, or empty: none). Answers its offset.
  std::uint8_t add_capability(std::uint8_t id, std::span<const std::byte> body,
                              std::span<const std::byte> writable = {});
  // Raw access for derived classes, inside the hooks or before the function is on a bus.
  template <class T>
  [[nodiscard]] T config_at(std::uint32_t offset) const;
  template <class T>
  void set_config_at(std::uint32_t offset, T value);
  void set_writable_at(std::uint32_t offset, std::span<const std::byte> mask);

  // A BAR answers at `address` from now on; it does not any more. For what lives outside the bus,
  // such as doorbells. Called from config_write(), set_memory_bus() and assign_bar().
  virtual void bar_mapped(unsigned index, std::uint64_t address);
  virtual void bar_unmapped(unsigned index, std::uint64_t address);
  // After a guest's write changed bytes of [offset, offset + size).
  virtual void config_written(std::uint32_t offset, std::size_t size);
  // Before a guest reads [offset, offset + size): refresh what is computed on demand.
  virtual void config_about_to_be_read(std::uint32_t offset, std::size_t size);
  // The rest of a reset, after configuration space.
  virtual void device_reset();

 private:
  struct Bar {
    std::uint64_t size = 0, mapped_at = 0;
    bool wide = false, upper_half = false, mapped = false;
    BusDevice* device = nullptr;
  };
  void update_mappings();
  void unmap_bar(unsigned index);
  [[nodiscard]] std::uint64_t bar_address(unsigned index) const;

  std::array<std::byte, config_size> config_{};
  std::array<std::byte, config_size> writable_{};
  std::array<Bar, bars> bars_{};
  std::uint16_t next_capability_ = 0x40;
  std::uint8_t last_capability_ = 0;
  Bus* bus_ = nullptr;
  const PciGate* gate_ = nullptr;
};

template <class T>
T PciFunction::config_at(std::uint32_t offset) const {
  CHECK(offset + sizeof(T) <= config_size);
  T value;
  std::memcpy(&value, config_.data() + offset, sizeof value);
  return value;
}

template <class T>
void PciFunction::set_config_at(std::uint32_t offset, T value) {
  CHECK(offset + sizeof(T) <= config_size);
  std::memcpy(config_.data() + offset, &value, sizeof value);
}

}  // namespace millrace::vmm

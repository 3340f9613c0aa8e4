// Ioapic: the 24 pins that devices without message interrupts raise, beside KVM's own local APICs
// (a split irqchip). Intel 82093AA, with the behaviour of version 0x11: the end of an interrupt is
// reported by the local APIC.
//
// Thread: any; it locks for itself. It calls the output with its lock held.
#pragma once

#include <array>
#include <mutex>
#include <optional>

#include "vmm/bus.hpp"
#include "vmm/interrupts.hpp"

namespace millrace::vmm {

// Where the pins' messages go.
class IoapicOutput {
 public:
  virtual ~IoapicOutput() = default;
  virtual void send(const MsiMessage& message) = 0;
  // A level-triggered pin's message, so that the end of its vector is reported; none: no more.
  virtual void report_end(unsigned pin, const std::optional<MsiMessage>& message) = 0;
};

class Ioapic final : public BusDevice {
 public:
  static constexpr std::uint64_t base_address = 0xfec0'0000, size = 0x1000;
  static constexpr unsigned pins = 24;

  explicit Ioapic(IoapicOutput& output) : output_{output} {}

  // The line of a device; `pin` below 24.
  void set_line(unsigned pin, bool high);
  // A local APIC ended this vector.
  void end_of_interrupt(std::uint8_t vector);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  [[nodiscard]] std::uint32_t register_value() const;
  void set_register(std::uint32_t value);
  void set_entry(unsigned pin, std::uint64_t entry);
  void deliver(unsigned pin);

  std::mutex mutex_;
  IoapicOutput& output_;
  std::uint8_t selected_ = 0;
  std::uint32_t id_ = 0;
  std::array<std::uint64_t, pins> entries_ = masked_entries();
  std::array<bool, pins> lines_{};
  std::array<bool, pins> edges_{};  // an edge that came while the pin was masked

  static constexpr std::array<std::uint64_t, pins> masked_entries() {
    std::array<std::uint64_t, pins> entries{};
    entries.fill(1u << 16);
    return entries;
  }
};

}  // namespace millrace::vmm

// What ends or interrupts a machine's life from the guest's side: ACPI sleep and reset registers,
// the old keyboard controller's reset line, the panic port; and the power button towards it.
//
// ACPI 6.5 §4.8.3.7 (sleep control and status), §4.8.3.6 (reset), §5.6.9 (generic event device).
// Thread: any; callbacks come from vCPU threads.
#pragma once

#include <atomic>
#include <functional>

#include "vmm/bus.hpp"

namespace millrace::vmm {

enum class GuestEvent {
  power_off,
  reset,
  panicked,      // the guest's kernel panicked and says so
  crash_loaded,  // it panicked and now runs its crash kernel
};
using GuestEventHandler = std::function<void(GuestEvent)>;

class PowerPorts final : public BusDevice {
 public:
  static constexpr std::uint16_t port = 0x600;
  static constexpr std::uint64_t size = 4;
  static constexpr std::uint16_t sleep_control = 0, sleep_status = 1, events = 3;  // offsets
  static constexpr std::uint8_t sleep_type_off = 5;
  static constexpr std::uint8_t event_power_button = 1 << 0, event_cpus = 1 << 1,
                                event_memory = 1 << 2;

  // `interrupt` is an edge: high, then low.
  PowerPorts(GuestEventHandler handler, std::function<void(bool high)> interrupt)
      : handler_{std::move(handler)}, interrupt_{std::move(interrupt)} {}

  void press_power_button() { raise(event_power_button); }
  // Tells the guest of an event. Thread: any.
  void raise(std::uint8_t event);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  const GuestEventHandler handler_;
  const std::function<void(bool)> interrupt_;
  std::atomic<std::uint8_t> events_{0};
};

// Port 0x64: there is no keyboard, but the command that pulled the reset line works.
class KeyboardReset final : public BusDevice {
 public:
  static constexpr std::uint16_t port = 0x64;
  explicit KeyboardReset(GuestEventHandler handler) : handler_{std::move(handler)} {}
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  const GuestEventHandler handler_;
};

// pvpanic: one port; a read says which events are understood, a write is an event.
class PanicPort final : public BusDevice {
 public:
  static constexpr std::uint16_t port = 0x505;
  static constexpr std::uint8_t event_panicked = 1 << 0, event_crash_loaded = 1 << 1;
  explicit PanicPort(GuestEventHandler handler) : handler_{std::move(handler)} {}
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  const GuestEventHandler handler_;
};

}  // namespace millrace::vmm

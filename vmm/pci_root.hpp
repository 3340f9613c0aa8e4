// PciRoot: the guest's PCI bus 0: configuration space through memory (ECAM) and through ports
// 0xCF8/0xCFC, a host bridge in slot 0, functions in slots 1 to 31, each with a fixed share of the
// two memory windows, so that a function's addresses do not depend on its neighbours.
//
// PCI Express Base 4.0 §7.2, PCI Local Bus 3.0 §3.2.2.3.2. Thread: accesses from any; plug() and
// unplug() from one.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "vmm/bus.hpp"
#include "vmm/pci.hpp"

namespace millrace::vmm {

struct MemoryWindow {
  std::uint64_t start = 0, size = 0;
};

class PciRoot {
 public:
  static constexpr unsigned slots = 32;
  // A kernel looks into every slot of every bus that it is told of, so it is told of no more.
  static constexpr unsigned buses = 1;
  static constexpr std::uint64_t ecam_address = 0xe000'0000, ecam_size = buses << 20;
  static constexpr std::uint16_t port = 0xcf8, port_size = 8;
  static constexpr MemoryWindow low_window{0xc000'0000, 0x2000'0000};

  // `high`: the 64-bit window, its start and size multiples of 32 GiB / 32; `reset` is what port
  // 0xCF9, which lies among the others, asks for.
  PciRoot(Bus& ports, Bus& memory, MemoryWindow high, std::function<void()> reset);
  ~PciRoot();
  PciRoot(const PciRoot&) = delete;
  PciRoot& operator=(const PciRoot&) = delete;

  // Puts the host bridge and both ways to configuration space on the buses.
  base::Result<void> start();
  // Gives the function its addresses and makes it visible. Fails where the slot is none, is taken,
  // or its share of a window is too small for the function's BARs.
  base::Result<void> plug(unsigned slot, std::unique_ptr<PciFunction> function);
  // Empty where there was none.
  std::unique_ptr<PciFunction> unplug(unsigned slot);

 private:
  class Ecam final : public BusDevice {
   public:
    explicit Ecam(PciRoot& root) : root_{root} {}
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

   private:
    PciRoot& root_;
  };
  class Ports final : public BusDevice {
   public:
    explicit Ports(PciRoot& root) : root_{root} {}
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

   private:
    // Where an access to the data port goes; none while the address port does not enable it.
    std::optional<std::uint32_t> target(std::uint64_t offset);
    PciRoot& root_;
    std::mutex mutex_;
    std::uint32_t address_ = 0;
  };
  struct Slot {
    std::mutex mutex;
    std::unique_ptr<PciFunction> function;
  };

  // `address`: bus, slot and function as in ECAM, and the offset.
  void config_read(std::uint32_t address, std::span<std::byte> data);
  void config_write(std::uint32_t address, std::span<const std::byte> data);
  Slot* slot_of(std::uint32_t address);
  base::Result<void> place_bars(unsigned slot, PciFunction& function) const;

  Bus& ports_;
  Bus& memory_;
  const MemoryWindow high_;
  const std::function<void()> reset_;
  Ecam ecam_{*this};
  Ports port_device_{*this};
  std::array<Slot, slots> slots_;
};

}  // namespace millrace::vmm

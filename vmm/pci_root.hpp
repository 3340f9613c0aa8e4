// PciRoot: the guest's PCI: configuration space through memory (ECAM) and through ports
// 0xCF8/0xCFC, and bus 0 with a host bridge, devices, and root ports that lead to a bus of one
// device each (pci_layout.hpp). A slot has a fixed share of the two memory windows and a port a
// fixed share of its slot's, so that a function's addresses do not depend on its neighbours.
//
// PCI Express Base 4.0 §7.2, PCI Local Bus 3.0 §3.2.2.3.2. Thread: accesses from any; all else from
// one.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "vmm/bus.hpp"
#include "vmm/pci.hpp"
#include "vmm/pci_layout.hpp"
#include "vmm/pci_port.hpp"

namespace millrace::vmm {

class PciRoot {
 public:
  static constexpr unsigned slots = 32, functions_per_slot = 8;
  // Room for the most buses; there is an answer for those that are there.
  static constexpr std::uint64_t ecam_address = 0xe000'0000,
                                 ecam_size = std::uint64_t{pci_layout::buses_max} << 20;
  static constexpr std::uint16_t port = 0xcf8, port_size = 8;
  static constexpr MemoryWindow low_window{0xc000'0000, 0x2000'0000};

  // `high`: the 64-bit window, its start and size multiples of 32 GiB / 32; `reset` is what port
  // 0xCF9, which lies among the others, asks for.
  PciRoot(Bus& ports, Bus& memory, MemoryWindow high, std::function<void()> reset);
  ~PciRoot();
  PciRoot(const PciRoot&) = delete;
  PciRoot& operator=(const PciRoot&) = delete;

  // Puts the host bridge and both ways to configuration space on the buses, and `ports` root ports,
  // 64 at most. `let_go`: a port's device may be taken (released_port()); see PciPort::make().
  base::Result<void> start();
  base::Result<void> start(unsigned ports, Interrupts& interrupts, std::function<void()> let_go);
  [[nodiscard]] unsigned ports() const { return static_cast<unsigned>(ports_.size()); }

  // Gives the function its addresses and makes it visible in a slot of bus 0. Fails where the slot
  // is none, is taken, or its share of a window is too small for the function's BARs.
  base::Result<void> plug(unsigned slot, std::unique_ptr<PciFunction> function);
  // Empty where there was none.
  std::unique_ptr<PciFunction> unplug(unsigned slot);

  // The same behind a root port. `running`: the guest has to be told.
  base::Result<void> plug_behind(unsigned port, std::unique_ptr<PciFunction> function,
                                 bool running);
  // Asks the guest to let go of what is there; see PciPort::ask_for_removal().
  bool ask_for_removal(unsigned port, PciPort::Clock::time_point now);
  // A port whose guest was asked and let go, while there is one.
  [[nodiscard]] std::optional<unsigned> released_port();
  // Takes the device away, whatever the guest does with it. Empty where there was none.
  std::unique_ptr<PciFunction> unplug_behind(unsigned port);

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
  // A function of bus 0; the lock is also that of the device behind it, if it is a port.
  struct Place {
    std::mutex mutex;
    std::unique_ptr<PciFunction> function;
  };
  // A port belongs to its place, and stays as long as this.
  struct PortAt {
    PciPort* port;
    Place* place;
    MemoryWindow low, high;
  };

  // `address`: bus, slot and function as in ECAM, and the offset.
  void config_read(std::uint32_t address, std::span<std::byte> data);
  void config_write(std::uint32_t address, std::span<const std::byte> data);
  // Calls `access` with the function that is there, if one is, under its place's lock.
  template <class Access>
  void with_function(std::uint32_t address, Access access);
  base::Result<void> add_port(unsigned index, unsigned ports, Interrupts& interrupts,
                              const std::function<void()>& let_go);

  Bus& ports_bus_;
  Bus& memory_;
  const MemoryWindow high_;
  const std::function<void()> reset_;
  Ecam ecam_{*this};
  Ports port_device_{*this};
  std::array<Place, slots * functions_per_slot> places_;  // by device and function number
  std::vector<PortAt> ports_;                             // fixed before a guest runs
};

}  // namespace millrace::vmm

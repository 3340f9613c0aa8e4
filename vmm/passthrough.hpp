// Passthrough: a function of the host as a guest sees it: its BARs' pages are the function's own,
// without an exit; its MSI-X table and configuration space are this program's, which passes on what
// a guest may change (function_shape.hpp says what it sees).
//
//  - Interrupts: the function signals the eventfds of Msix, which KVM turns into messages. The
//    kernel cannot mask MSI-X, so a vector that the guest masks is one whose eventfd goes nowhere.
//  - The command register: the guest's bus mastering is passed on; the function's memory stays on,
//    since a BAR that is off in hardware would end the process that touches it, and what the guest
//    turns off is unmapped for the guest.
//  - A reset (of the slot, or by the guest through the function's own FLR) is a real one.
// Thread: as PciFunction; the BARs any.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "vmm/bar_slots.hpp"
#include "vmm/function_shape.hpp"
#include "vmm/host_functions.hpp"
#include "vmm/interrupts.hpp"
#include "vmm/msix.hpp"
#include "vmm/pci.hpp"

namespace millrace::vmm {

class Passthrough final : public PciFunction {
 public:
  // `slots` and `interrupts` outlive it. Fails with one line that names the function.
  static base::Result<std::unique_ptr<Passthrough>> make(HostFunctions::Taken taken,
                                                         BarSlots& slots, Interrupts& interrupts);
  // The function stops, is reset, and is the host's again.
  ~Passthrough() override;

 private:
  // What traps of a BAR: the MSI-X table, and pages that cannot be mapped.
  class Bar final : public BusDevice {
   public:
    Bar() = default;
    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

    Passthrough* owner = nullptr;
    unsigned index = 0;
  };
  // Part of a BAR that is mapped here.
  struct Mapped {
    unsigned bar = 0;
    vfio::Area area;  // as the function has it
    std::byte* at = nullptr;
    std::vector<vfio::Area> for_guest;  // parts of it
  };

  Passthrough(HostFunctions::Taken taken, const FunctionShape& shape, std::unique_ptr<Msix> msix,
              BarSlots& slots);
  base::Result<void> map_bars();
  void add_capabilities();
  void bar_mapped(unsigned index, std::uint64_t address) override;
  void bar_unmapped(unsigned index, std::uint64_t address) override;
  void config_written(std::uint32_t offset, std::size_t size) override;
  void config_about_to_be_read(std::uint32_t offset, std::size_t size) override;
  void device_reset() override;
  void set_command();
  void set_interrupts();
  void write_express(std::uint32_t offset, std::size_t size);
  void say_once(const base::Result<void>& result);

  const HostFunctions::Taken taken_;
  const FunctionShape shape_;
  const std::unique_ptr<Msix> msix_;
  BarSlots& slots_;
  std::array<Bar, bars> traps_;
  std::vector<Mapped> mapped_;
  std::array<std::vector<unsigned>, bars> slots_of_;  // by BAR, while the guest has it mapped
  bool delivers_ = false;                             // the function's MSI-X is on
  std::uint16_t command_ = 0;                         // as the function has it
  bool complained_ = false;                           // said once, whatever the guest does
};

}  // namespace millrace::vmm

// PciPort: a PCI Express root port with a slot: a bridge to a bus of one device, which may come and
// go while the guest runs (PCI Express Base 4.0 §6.7, §7.5.1.3, §7.5.3).
//
// What the guest's driver (Linux: pciehp) makes of its capabilities:
//  - A device that comes is a link that comes up: the guest takes it in at once.
//  - A device shall go only after its driver let go of it, and the only event that asks for that is
//    the attention button: a link that goes down says that the device is gone already, and what was
//    in flight is lost. Guests give their user five seconds to press it again, which calls it off.
//  - The power indicator, off, is the guest's word that the device may be taken. There is no power
//    controller, which would say the same: guests wait a second after switching one.
//  - Commands complete at once, without an event for each.
//
// The device answers configuration accesses on the bus that the guest's bus number register names
// and memory accesses inside the windows that the guest's registers describe.
// Thread: PciRoot serialises all calls with the configuration accesses of port and device, but for
// secondary_bus().
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "base/result.hpp"
#include "vmm/interrupts.hpp"
#include "vmm/msi.hpp"
#include "vmm/pci.hpp"

namespace millrace::vmm {

struct MemoryWindow {
  std::uint64_t start = 0, size = 0;
};

class PciPort final : public PciFunction, private PciGate {
 public:
  using Clock = std::chrono::steady_clock;
  // A guest that did not react for so long is asked again.
  static constexpr std::chrono::seconds patience{5};

  struct Settings {
    unsigned number = 0;         // of its slot, as the guest names it
    std::uint8_t bus = 0;        // that it leads to, until the guest says otherwise
    MemoryWindow low{}, high{};  // multiples of 1 MiB; the first below 4 GiB
    bool multifunction = false;  // the slot on its own bus has more functions
  };
  // `let_go` is called from a vCPU's thread, with PciRoot's lock held, once the guest let go of a
  // device that it was asked for: it may only tell another thread. Fails where there is no
  // interrupt route left.
  static base::Result<std::unique_ptr<PciPort>> make(const Settings& settings,
                                                     Interrupts& interrupts,
                                                     std::function<void()> let_go);
  ~PciPort() override;

  // Thread: any.
  [[nodiscard]] std::uint8_t secondary_bus() const { return secondary_bus_.load(); }

  // The slot is empty before. `running`: the guest has to be told.
  void insert(std::unique_ptr<PciFunction> device, Bus& memory, bool running);
  // Takes the device from the guest, whether that let go of it or not.
  std::unique_ptr<PciFunction> take();
  [[nodiscard]] PciFunction* device() const { return device_.get(); }

  // Asks the guest to let go of the device that is there. False: it was asked a short while ago, or
  // is about to.
  bool ask_for_removal(Clock::time_point now);
  // It was asked and did.
  [[nodiscard]] bool has_let_go() const { return has_let_go_; }

 private:
  PciPort(const Settings& settings, Msi msi, std::function<void()> let_go);
  void add_express_capability(unsigned number);
  void config_written(std::uint32_t offset, std::size_t size) override;
  void config_about_to_be_read(std::uint32_t offset, std::size_t size) override;
  [[nodiscard]] bool forwards(std::uint64_t address, std::uint64_t size) const override;

  void slot_status_written(std::uint32_t offset, std::size_t size);
  void slot_control_written();
  void bridge_control_written();
  void set_occupied(bool occupied);
  void add_events(std::uint16_t events);
  void update_interrupt();
  void let_go();
  [[nodiscard]] std::uint16_t indicator() const;
  [[nodiscard]] bool is_in_use() const;

  Msi msi_;
  const std::function<void()> on_let_go_;
  std::unique_ptr<PciFunction> device_;
  std::atomic<std::uint8_t> secondary_bus_;
  std::uint32_t express_ = 0, msi_at_ = 0;  // offsets of the capabilities
  std::uint16_t slot_status_ = 0;           // as it is, whatever a guest's write left in its place
  std::uint16_t bridge_control_ = 0;        // as it was before a guest's write
  bool asserted_ = false;                   // the interrupt's condition holds
  std::optional<Clock::time_point> asked_at_;
  bool has_let_go_ = false;
};

}  // namespace millrace::vmm

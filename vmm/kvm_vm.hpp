// KvmVm: one virtual machine of KVM: its memory, its doorbells, its message interrupts.
//
// Thread: any.
#pragma once

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/doorbells.hpp"
#include "vmm/interrupts.hpp"
#include "vmm/kvm_system.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

class KvmVm final : public Doorbells {
 public:
  // Pins of the IOAPIC that KVM leaves to this program: interrupt routes of our own start there.
  static constexpr unsigned ioapic_pins = 24;

  // `ram` stays mapped while the machine runs.
  static base::Result<KvmVm> make(const KvmSystem& system, const GuestRam& ram);

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Memory that stays mapped while the machine runs. Thread: one.
  base::Result<void> add_memory(const RamRegion& region);
  // Doorbells.
  base::Result<void> assign(std::uint64_t guest_address, unsigned length, int eventfd) override;
  void remove(std::uint64_t guest_address, unsigned length, int eventfd) override;
  // Delivers one message now. What the guest asks to be sent nowhere goes nowhere.
  void send(const MsiMessage& message);

 private:
  explicit KvmVm(base::Fd fd) : fd_{std::move(fd)} {}
  base::Result<void> set_up(const GuestRam& ram);

  base::Fd fd_;
  std::uint32_t memory_slots_ = 0;
};

}  // namespace millrace::vmm

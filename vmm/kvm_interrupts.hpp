// KvmInterrupts: interrupts.hpp by KVM's irqfd, and the IOAPIC's way to the local APICs.
//
// KVM takes its routes as one whole table; it is kept here. Thread: any; it locks for itself.
#pragma once

#include <array>
#include <mutex>
#include <optional>
#include <vector>

#include "vmm/ioapic.hpp"
#include "vmm/kvm_vm.hpp"

namespace millrace::vmm {

class KvmInterrupts final : public Interrupts, public IoapicOutput {
 public:
  static constexpr unsigned routes_max = 4096;

  explicit KvmInterrupts(KvmVm& vm);

  base::Result<std::unique_ptr<MsiVector>> make_vector() override;
  void send(const MsiMessage& message) override { vm_.send(message); }
  void report_end(unsigned pin, const std::optional<MsiMessage>& message) override;

 private:
  class Vector;
  // Sets or takes away a route, and gives KVM the table where that changes it.
  base::Result<void> set_route(unsigned gsi, const std::optional<MsiMessage>& message);
  base::Result<unsigned> take_gsi();
  void give_back_gsi(unsigned gsi);

  KvmVm& vm_;
  std::mutex mutex_;
  std::vector<std::optional<MsiMessage>> routes_;  // by GSI
  std::vector<bool> taken_;                        // GSIs that vectors have
};

}  // namespace millrace::vmm

// KvmBarSlots: bar_slots.hpp by memory slots of KVM. Thread: any; it locks for itself.
#pragma once

#include <mutex>
#include <vector>

#include "vmm/bar_slots.hpp"
#include "vmm/kvm_vm.hpp"

namespace millrace::vmm {

class KvmBarSlots final : public BarSlots {
 public:
  // Slots of KVM: those below are the guest's memory's.
  static constexpr unsigned first = 64, most = 256;

  explicit KvmBarSlots(KvmVm& vm) : vm_{vm}, taken_(most) {}

  base::Result<unsigned> add(std::uint64_t guest_address, std::uint64_t size,
                             std::byte* host) override;
  void remove(unsigned slot) override;

 private:
  KvmVm& vm_;
  std::mutex mutex_;
  std::vector<bool> taken_;
};

}  // namespace millrace::vmm

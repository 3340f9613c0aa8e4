// KvmClock: the guest's kvmclock stands still while its vCPUs do.
//
// Thread: the loop's.
#pragma once

#include <cstdint>
#include <optional>

#include "vmm/kvm_vm.hpp"

namespace millrace::vmm {

class KvmClock {
 public:
  explicit KvmClock(const KvmVm& vm) : vm_{vm} {}
  // Remembers what time it is in the guest.
  void hold();
  // It is that time again. Nothing where hold() did not come first.
  void release();

 private:
  const KvmVm& vm_;
  std::optional<std::uint64_t> held_;  // nanoseconds
};

}  // namespace millrace::vmm

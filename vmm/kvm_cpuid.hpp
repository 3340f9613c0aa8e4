// The CPUID leaves of a guest's vCPU: what KVM supports, made into one package of single-threaded
// cores. Thread: any.
#pragma once

#include <linux/kvm.h>

#include <vector>

#include "base/result.hpp"
#include "vmm/kvm_system.hpp"

namespace millrace::vmm {

struct CpuidConfig {
  unsigned index = 0, count = 1;  // this vCPU of how many; the index is its APIC id
  bool tsc_deadline = false;      // KVM never lists it among what it supports
  std::uint32_t tsc_khz = 0;      // 0: not told to the guest
};

[[nodiscard]] base::Result<std::vector<kvm_cpuid_entry2>> supported_cpuid(const KvmSystem& system);
// From KVM's list to what vCPU `config.index` sees.
[[nodiscard]] std::vector<kvm_cpuid_entry2> guest_cpuid(std::vector<kvm_cpuid_entry2> supported,
                                                        const CpuidConfig& config);

}  // namespace millrace::vmm

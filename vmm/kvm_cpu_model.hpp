// From what KVM supports to the CPUID leaves of a named processor model: all leaves that the model
// has, and none else. Thread: any.
#pragma once

#include <linux/kvm.h>

#include <string>
#include <vector>

#include "base/result.hpp"
#include "vmm/cpu_model.hpp"
#include "vmm/kvm_system.hpp"

namespace millrace::vmm {

// The model's features that are not among what KVM supports, by name. `tsc_deadline`: whether KVM
// has that timer, which it does not list.
[[nodiscard]] std::vector<std::string> missing_features(
    const CpuModel& model, const std::vector<kvm_cpuid_entry2>& supported, bool tsc_deadline);

// The leaves of the model, for guest_cpuid(). They depend on the host in its vendor (but for a
// model that has its own), in where its XSAVE area has what, and in whether its clock is invariant.
// Fails, with what to choose instead, where the host lacks anything of the model.
[[nodiscard]] base::Result<std::vector<kvm_cpuid_entry2>> model_cpuid(
    const CpuModel& model, const std::vector<kvm_cpuid_entry2>& supported, bool tsc_deadline);

// What this host has for that model; nullptr: all that KVM supports.
[[nodiscard]] base::Result<std::vector<kvm_cpuid_entry2>> processor_cpuid(const KvmSystem& system,
                                                                          const CpuModel* model);

}  // namespace millrace::vmm

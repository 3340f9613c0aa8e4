// The leaves of the processor models on hosts that have everything, one of each vendor.
// Thread: any.
#pragma once

#include <string>
#include <vector>

struct kvm_cpuid_entry2;

namespace millrace::vmm::testing {

// What KVM would support on such a host.
[[nodiscard]] std::vector<kvm_cpuid_entry2> full_host(bool amd);
// Of each model, the one vCPU of one, and the last one of four.
[[nodiscard]] std::string dump_processors();

}  // namespace millrace::vmm::testing

#include "vmm/kvm_calls.hpp"

#include "vmm/kvm_list.hpp"

namespace millrace::vmm {

static_assert(KvmRequests::value == KVMIO << 8);

std::vector<std::uint32_t> requests_of_devices() {
  return {KVM_IOEVENTFD, KVM_IRQFD, static_cast<std::uint32_t>(set_gsi_routing), KVM_SIGNAL_MSI};
}

std::vector<std::uint32_t> requests_of_bars() {
  return {KVM_SET_USER_MEMORY_REGION};
}

std::vector<std::uint32_t> requests_of_vcpus() {
  std::vector<std::uint32_t> requests{KVM_RUN};
  const auto devices = requests_of_devices();
  requests.insert(requests.end(), devices.begin(), devices.end());
  // Where a guest stopped and why; a paused guest's clock.
  requests.insert(requests.end(), {KVM_GET_REGS, KVM_GET_SREGS, KVM_KVMCLOCK_CTRL});
  return requests;
}

}  // namespace millrace::vmm

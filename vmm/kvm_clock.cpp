#include "vmm/kvm_clock.hpp"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "base/log.hpp"

namespace millrace::vmm {

void KvmClock::hold() {
  kvm_clock_data data{};
  if (::ioctl(vm_.fd(), KVM_GET_CLOCK, &data) == 0) held_ = data.clock;
}

void KvmClock::release() {
  if (!held_) return;
  kvm_clock_data data{};
  data.clock = *held_;
  held_.reset();
  if (::ioctl(vm_.fd(), KVM_SET_CLOCK, &data) != 0) {
    spdlog::warn("KVM does not set the guest's clock: the guest sees how long it was paused");
  }
}

}  // namespace millrace::vmm

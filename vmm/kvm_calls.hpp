// The ioctl(2) requests of KVM that threads need after set-up, for the sandbox's lists.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace::vmm {

// What all requests of KVM have in common: (request & mask) == value.
struct KvmRequests {
  static constexpr std::uint32_t value = 0xae00, mask = 0xff00;
};

// What a guest's access to a register leads to on the thread of a device.
[[nodiscard]] std::vector<std::uint32_t> requests_of_devices();
// A guest that moves the BARs of a host function.
[[nodiscard]] std::vector<std::uint32_t> requests_of_bars();
// A vCPU's thread: running the guest comes first, then as a device's thread.
[[nodiscard]] std::vector<std::uint32_t> requests_of_vcpus();

}  // namespace millrace::vmm

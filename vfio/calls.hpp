// The ioctl(2) requests of VFIO that are needed after set-up, for the sandbox's lists.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace::vfio {

// What all requests of VFIO have in common: (request & mask) == value.
struct Requests {
  static constexpr std::uint32_t value = 0x3b00, mask = 0xff00;
};

// What a guest's access to the registers of a function that it has leads to: its interrupts, its
// reset.
[[nodiscard]] std::vector<std::uint32_t> requests_of_functions();

}  // namespace millrace::vfio

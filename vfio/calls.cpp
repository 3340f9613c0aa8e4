#include "vfio/calls.hpp"

#include <linux/vfio.h>

namespace millrace::vfio {

static_assert(Requests::value == VFIO_TYPE << 8);

std::vector<std::uint32_t> requests_of_functions() {
  return {VFIO_DEVICE_SET_IRQS, VFIO_DEVICE_RESET};
}

}  // namespace millrace::vfio

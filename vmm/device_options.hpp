// From a device's option to what puts it together.
#pragma once

#include <functional>

#include "base/result.hpp"
#include "vmm/machine.hpp"
#include "vmm/options.hpp"

namespace millrace::vmm {

// `cancel` answers a descriptor that is readable once waiting for a back-end makes no more sense;
// it is asked when the device is made. Fails where the option says nonsense.
[[nodiscard]] base::Result<MakeFunction> make_device(const DeviceOption& option,
                                                     std::function<int()> cancel);

}  // namespace millrace::vmm

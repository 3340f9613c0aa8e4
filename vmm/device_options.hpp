// From a device's option to what puts it together.
#pragma once

#include <functional>
#include <string>

#include "base/result.hpp"
#include "vmm/machine.hpp"
#include "vmm/options.hpp"

namespace millrace::vmm {

// Whom to tell of a device.
struct DeviceWatch {
  // It was put together, with so many queues. On the thread that did so.
  std::function<void(unsigned queues)> made;
  // Its back-end came or went. From a thread of the device, which must not be waited for.
  std::function<void(bool connected, const std::string& why)> changed;
};

// `cancel` answers a descriptor that is readable once waiting for a back-end makes no more sense;
// it is asked when the device is made. Fails where the option says nonsense.
[[nodiscard]] base::Result<MakeFunction> make_device(const DeviceOption& option,
                                                     std::function<int()> cancel,
                                                     DeviceWatch watch = {});

}  // namespace millrace::vmm

// The DSDT's part for vCPUs and memory that are added while the guest runs. Empty where neither
// may be. ACPI 6.5 §5.2.12.2 (processors that may come), §9.11 (memory devices).
#pragma once

#include <string>

#include "vmm/platform.hpp"

namespace millrace::vmm {

// Devices, for the scope \_SB.
[[nodiscard]] std::string hotplug_devices(const Platform& platform);
// What the generic event device does when the events in Local0 say that something was added: the
// guest is told once of each thing that is new.
[[nodiscard]] std::string hotplug_events(const Platform& platform);

}  // namespace millrace::vmm

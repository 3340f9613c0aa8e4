// Machine profiles: a name for everything that a guest's hardware is made of: where its memory,
// ports, PCI functions and their BARs lie, its ACPI tables, the leaves of its processor models, the
// registers of its virtio devices. A profile never changes once it was released; what would change
// it becomes the next one. `golden/` has what each is, and a test holds it.
#pragma once

#include <string_view>

#include "base/result.hpp"

namespace millrace::vmm {

struct MachineProfile {
  std::string_view name;
};

inline constexpr MachineProfile millrace_1{"millrace-1"};

// Fails on a name that is none, with a list.
[[nodiscard]] base::Result<const MachineProfile*> find_profile(std::string_view name);

}  // namespace millrace::vmm

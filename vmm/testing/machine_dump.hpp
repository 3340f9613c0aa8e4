// What a machine profile is, as text: the memory map, the ports, the ACPI tables, the PCI functions
// of a usual guest, the leaves of every processor model. Nothing in it depends on the host; no KVM
// is needed. Thread: any.
#pragma once

#include <string>

namespace millrace::vmm::testing {

[[nodiscard]] std::string dump_machine();

}  // namespace millrace::vmm::testing

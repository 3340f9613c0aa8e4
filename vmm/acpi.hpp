// The guest's ACPI tables: hardware-reduced, so that a kernel looks for no timer, interrupt
// controller or clock of the old PC. ACPI 6.5 §5.2.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

struct AcpiImage {
  std::string bytes;          // RSDP first, the tables after it
  std::uint64_t address = 0;  // where it must be put
};

// Fails where the tables do not fit their place.
[[nodiscard]] base::Result<AcpiImage> make_acpi(const Platform& platform);

// The DSDT's AML, without the table's header.
[[nodiscard]] std::string make_dsdt_body(const Platform& platform);
// A table with its header, length and checksum.
[[nodiscard]] std::string make_acpi_table(const char* signature, unsigned revision,
                                          const std::string& body);

}  // namespace millrace::vmm

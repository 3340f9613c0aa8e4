// HostFunction: what the host says of a PCI function (sysfs, Linux Documentation/ABI/testing/
// sysfs-bus-pci): which driver has it, which IOMMU group it is in, and who shares that.
//
// Thread: any. Opens files.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace millrace::vfio {

struct HostFunction {
  std::string address;                     // 0000:01:10.0
  std::string driver;                      // empty: none
  std::optional<unsigned> group;           // none: no IOMMU is in use
  std::vector<std::string> group_members;  // addresses of all in the group, itself too, in order
};

// Whether it has the form 0000:01:10.0.
[[nodiscard]] bool is_pci_address(std::string_view text);

// `root`: in place of "/", for tests. Fails with one line: no such function.
[[nodiscard]] base::Result<HostFunction> find_function(const std::string& address,
                                                       const std::string& root = "/");

// Fails with one line unless the function can be opened through VFIO: there is no IOMMU, another
// driver has it.
[[nodiscard]] base::Result<void> check_ready(const HostFunction& function);

}  // namespace millrace::vfio

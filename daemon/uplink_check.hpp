// Whether a PCI function can be an uplink, read off sysfs before anything opens it: that it is
// there, has an IOMMU group, is driven by vfio-pci, and that its group is usable and free. Binds
// nothing. Thread: control.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "sriov/sysfs.hpp"

namespace millrace::daemon {

// The number of the function's IOMMU group, or one line: what is wrong and what to type.
[[nodiscard]] base::Result<unsigned> check_pci_function(const std::string& address,
                                                        const sriov::Sysfs& host = sriov::Sysfs{});

// Whether this process may open the group: nobody has it, and /dev/vfio/N is there and permitted.
// Not to be asked for a group that this process itself holds.
[[nodiscard]] base::Result<> check_pci_group(const std::string& address, unsigned group,
                                             const sriov::Sysfs& host = sriov::Sysfs{});

// Whether this process may pin `megabytes` of memory for the device (RLIMIT_MEMLOCK).
[[nodiscard]] base::Result<> check_pinning(unsigned megabytes);

// All of it, for one more uplink beside `others` (addresses) that this process has already.
[[nodiscard]] base::Result<> check_pci_uplink(const std::string& address,
                                              const std::vector<std::string>& others,
                                              unsigned megabytes,
                                              const sriov::Sysfs& host = sriov::Sysfs{});

// Whether an uplink can have an IOMMU domain of its own, or leave one to another: none of `others`
// (addresses) is in its function's IOMMU group. One line where one is.
[[nodiscard]] base::Result<> check_alone_in_group(const std::string& address,
                                                  const std::vector<std::string>& others,
                                                  const sriov::Sysfs& host = sriov::Sysfs{});

// Whether the physical function of a virtual one has a link; of a device that is none: no.
[[nodiscard]] bool physical_has_link(const std::string& address,
                                     const sriov::Sysfs& host = sriov::Sysfs{});

}  // namespace millrace::daemon

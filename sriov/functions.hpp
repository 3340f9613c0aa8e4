// Physical and virtual functions as sysfs shows them, and who holds them
// (Documentation/ABI/testing/sysfs-bus-pci and Documentation/PCI/pci-iov-howto.rst of Linux).
// Thread: control (reads files). Everything answered is a snapshot.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/numa.hpp"
#include "base/result.hpp"
#include "sriov/pci_address.hpp"
#include "sriov/sysfs.hpp"

namespace millrace::sriov {

struct VirtualFunction {
  unsigned index = 0;  // as `ip link set PF vf INDEX` counts
  PciAddress address;
  std::string driver;             // empty: none
  std::optional<unsigned> group;  // of the IOMMU; nullopt: there is none
  int node = base::any_node;      // NUMA
  std::string netdev;             // empty: its driver makes none
  bool netdev_up = false;
};

struct PhysicalFunction {
  PciAddress address;
  unsigned vfs_max = 0;  // sriov_totalvfs
  bool autoprobe = true;
  std::string driver;  // empty: none
  std::string netdev;  // empty: its driver makes none
  int node = base::any_node;
  std::vector<VirtualFunction> functions;  // by index; as many as sriov_numvfs says
};

// Errors: there is no such function, or it has no virtual functions to give.
[[nodiscard]] base::Result<PhysicalFunction> read_physical_function(const Sysfs& sysfs,
                                                                    const PciAddress& address);
// nullopt: there is none of that index.
[[nodiscard]] std::optional<VirtualFunction> read_virtual_function(const Sysfs& sysfs,
                                                                   const PciAddress& physical,
                                                                   unsigned index);

// The IOMMU group of the function whose folder this is (Sysfs::folder); nullopt: there is none.
[[nodiscard]] std::optional<unsigned> group_of(const Sysfs& sysfs, const std::string& folder);

// A process that has the /dev/vfio file of a group open.
struct Holder {
  pid_t pid = 0;
  std::string name;  // as ps has it
  bool operator==(const Holder&) const = default;
};
using Holders = std::map<unsigned, std::vector<Holder>>;  // by IOMMU group
// From /proc/*/fd: of the processes that we may look at, root of all in our PID
// namespace. Some tens of microseconds for each process: not for a beat.
[[nodiscard]] Holders vfio_holders(const Sysfs& sysfs);
// "process 4711 (qemu-system-x86), process 12 (vmm)"
[[nodiscard]] std::string format(const std::vector<Holder>& holders);

}  // namespace millrace::sriov

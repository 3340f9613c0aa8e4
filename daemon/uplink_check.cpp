#include "daemon/uplink_check.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/fd.hpp"
#include "sriov/functions.hpp"

namespace millrace::daemon {

namespace {

constexpr const char* vfio_driver = "vfio-pci";

std::string folder_of(const sriov::Sysfs& host, const std::string& address) {
  return host.path("sys/bus/pci/devices/" + address + "/");
}

std::string hand_over(const std::string& address, const std::string& driver) {
  const auto at = "/sys/bus/pci/devices/" + address;
  std::string line = "modprobe vfio-pci; echo vfio-pci >" + at + "/driver_override; ";
  if (!driver.empty()) line += "echo " + address + " >" + at + "/driver/unbind; ";
  return line + "echo " + address + " >/sys/bus/pci/drivers_probe";
}

// Drivers that do no DMA for a function of their own: VFIO lets them stay in a group.
bool harmless(const std::string& driver) {
  return driver.empty() || driver == vfio_driver || driver == "pci-stub" || driver == "pcieport";
}

}  // namespace

base::Result<unsigned> check_pci_function(const std::string& address, const sriov::Sysfs& host) {
  const auto at = folder_of(host, address);
  if (!host.number(at + "class")) {
    return base::fail("there is no PCI function " + address + "; lspci -D lists them");
  }
  const auto group = sriov::group_of(host, at);
  if (!group) {
    return base::fail("the PCI function " + address +
                      " has no IOMMU group: the IOMMU is off; switch it on in the firmware and "
                      "boot with intel_iommu=on (AMD: amd_iommu=on)");
  }
  const auto driver = host.link_name(at + "driver");
  if (driver != vfio_driver) {
    const auto who = driver.empty() ? "has no driver" : "is driven by " + driver;
    return base::fail("the PCI function " + address + " " + who +
                      "; give it to vfio-pci: " + hand_over(address, driver));
  }
  for (const auto& other : host.names(at + "iommu_group/devices")) {
    const auto its = host.link_name(folder_of(host, other) + "driver");
    if (other == address || harmless(its)) continue;
    return base::fail("the PCI function " + address + " shares IOMMU group " +
                      std::to_string(*group) + " with " + other + ", which is driven by " + its +
                      "; give that to vfio-pci too: " + hand_over(other, its));
  }
  return *group;
}

base::Result<> check_pci_group(const std::string& address, unsigned group,
                               const sriov::Sysfs& host) {
  const auto begin =
      "IOMMU group " + std::to_string(group) + " of the PCI function " + address + " ";
  const auto holders = sriov::vfio_holders(host);
  if (const auto found = holders.find(group); found != holders.end()) {
    const bool ours = std::ranges::count(found->second, ::getpid(), &sriov::Holder::pid) != 0;
    return base::fail(begin +
                      (ours ? "is still this daemon's: what had it is being removed; try "
                              "again in a moment"
                            : "is held by " + sriov::format(found->second) + "; end it first"));
  }
  const auto path = host.path("dev/vfio/" + std::to_string(group));
  const base::Fd opened{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  if (opened) return {};
  if (errno == EBUSY) {
    return base::fail(begin + "is held by a process that cannot be seen from here (of another " +
                      "container, or another user): fuser -v " + path + " as root on the host " +
                      "says which; end it first");
  }
  if (errno == EACCES || errno == EPERM) {
    return base::fail(begin + "may not be opened by this user; chown " +
                      std::to_string(::geteuid()) + " " + path);
  }
  return base::fail(begin + "cannot be opened: " + path + ": " + std::strerror(errno));
}

base::Result<> check_pinning(unsigned megabytes) {
  rlimit limit{};
  if (::geteuid() == 0 || ::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return {};
  const auto wanted = rlim_t{megabytes} << 20;
  if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= wanted) return {};
  return base::fail("a hardware uplink pins " + std::to_string(megabytes) +
                    " MiB ([memory] dpdk_mb), the limit of locked memory is " +
                    std::to_string(limit.rlim_cur >> 20) +
                    " MiB; raise it: LimitMEMLOCK=infinity in the service, or ulimit -l unlimited");
}

base::Result<> check_pci_uplink(const std::string& address, const std::vector<std::string>& others,
                                unsigned megabytes, const sriov::Sysfs& host) {
  if (std::ranges::find(others, address) != others.end()) {
    return base::fail("the PCI function " + address + " is an uplink already");
  }
  const auto group = check_pci_function(address, host);
  if (!group) return base::Unexpected{group.error()};
  const bool ours = std::ranges::any_of(others, [&](const std::string& other) {
    return sriov::group_of(host, folder_of(host, other)) == *group;
  });
  if (!ours) {
    if (auto free = check_pci_group(address, *group, host); !free) return free;
  }
  return check_pinning(megabytes);
}

base::Result<> check_alone_in_group(const std::string& address,
                                    const std::vector<std::string>& others,
                                    const sriov::Sysfs& host) {
  const auto group = sriov::group_of(host, folder_of(host, address));
  for (const auto& other : others) {
    if (!group || sriov::group_of(host, folder_of(host, other)) != group) continue;
    return base::fail("the PCI function " + address + " shares IOMMU group " +
                      std::to_string(*group) + " with the uplink " + other +
                      ", and zero_copy needs the group for one uplink alone; leave zero_copy out "
                      "of both");
  }
  return {};
}

bool physical_has_link(const std::string& address, const sriov::Sysfs& host) {
  const auto interfaces = folder_of(host, address) + "physfn/net";
  return std::ranges::any_of(host.names(interfaces), [&](const std::string& name) {
    return host.number(interfaces + "/" + name + "/carrier") == 1;
  });
}

}  // namespace millrace::daemon

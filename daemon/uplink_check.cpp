#include "daemon/uplink_check.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/fd.hpp"

namespace millrace::daemon {

namespace {

namespace fs = std::filesystem;

constexpr const char* vfio_driver = "vfio-pci";

// The last part of what a link leads to; empty: there is no such link.
std::string target(const fs::path& link) {
  std::error_code failed;
  return fs::read_symlink(link, failed).filename().string();
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

base::Result<std::string> check_pci_function(const std::string& address, const PciPlaces& places) {
  const auto at = places.functions / address;
  std::error_code failed;
  if (!fs::exists(at, failed)) {
    return base::fail("there is no PCI function " + address + "; lspci -D lists them");
  }
  const auto group = target(at / "iommu_group");
  if (group.empty()) {
    return base::fail("the PCI function " + address +
                      " has no IOMMU group: the IOMMU is off; switch it on in the firmware and "
                      "boot with intel_iommu=on (AMD: amd_iommu=on)");
  }
  const auto driver = target(at / "driver");
  if (driver != vfio_driver) {
    const auto who = driver.empty() ? "has no driver" : "is driven by " + driver;
    return base::fail("the PCI function " + address + " " + who +
                      "; give it to vfio-pci: " + hand_over(address, driver));
  }
  const auto neighbours = at / "iommu_group" / "devices";
  for (fs::directory_iterator each{neighbours, failed}, end; !failed && each != end;
       each.increment(failed)) {
    const auto other = each->path().filename().string();
    const auto its = target(each->path() / "driver");
    if (other == address || harmless(its)) continue;
    return base::fail("the PCI function " + address + " shares IOMMU group " + group + " with " +
                      other + ", which is driven by " + its +
                      "; give that to vfio-pci too: " + hand_over(other, its));
  }
  return group;
}

base::Result<> check_pci_group(const std::string& address, const std::string& group,
                               const PciPlaces& places) {
  const auto path = (places.groups / group).string();
  const base::Fd opened{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  if (opened) return {};
  const auto begin = "IOMMU group " + group + " of the PCI function " + address;
  if (errno == EBUSY) {
    return base::fail(begin + " is open in another process; fuser -v " + path + " says which");
  }
  if (errno == EACCES || errno == EPERM) {
    return base::fail(begin + " may not be opened by this user; chown " +
                      std::to_string(::geteuid()) + " " + path);
  }
  return base::fail(begin + ": cannot open " + path + ": " + std::strerror(errno));
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
                                unsigned megabytes, const PciPlaces& places) {
  if (std::ranges::find(others, address) != others.end()) {
    return base::fail("the PCI function " + address + " is an uplink already");
  }
  const auto group = check_pci_function(address, places);
  if (!group) return base::Unexpected{group.error()};
  const bool ours = std::ranges::any_of(others, [&](const std::string& other) {
    return target(places.functions / other / "iommu_group") == *group;
  });
  if (!ours) {
    if (auto free = check_pci_group(address, *group, places); !free) return free;
  }
  return check_pinning(megabytes);
}

}  // namespace millrace::daemon

#include "sriov/functions.hpp"

#include <net/if.h>

#include <charconv>

#include "base/one_line.hpp"

namespace millrace::sriov {

namespace {

template <class Number>
std::optional<Number> number_of(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// The first network interface that a function's driver made.
std::string netdev_of(const Sysfs& sysfs, const std::string& folder) {
  const auto names = sysfs.names(folder + "net");
  return names.empty() ? std::string{} : names.front();
}

int node_of(const Sysfs& sysfs, const std::string& folder) {
  const auto node = sysfs.number(folder + "numa_node").value_or(-1);
  return node < 0 ? base::any_node : static_cast<int>(node);
}

}  // namespace

std::optional<unsigned> group_of(const Sysfs& sysfs, const std::string& folder) {
  return number_of<unsigned>(sysfs.link_name(folder + "iommu_group"));
}

std::optional<VirtualFunction> read_virtual_function(const Sysfs& sysfs, const PciAddress& physical,
                                                     unsigned index) {
  const auto target = sysfs.link_name(sysfs.folder(physical) + "virtfn" + std::to_string(index));
  const auto address = parse_pci_address(target);
  if (!address) return std::nullopt;
  VirtualFunction out;
  out.index = index;
  out.address = *address;
  const auto folder = sysfs.folder(*address);
  out.driver = sysfs.link_name(folder + "driver");
  out.group = group_of(sysfs, folder);
  out.node = node_of(sysfs, folder);
  out.netdev = netdev_of(sysfs, folder);
  if (!out.netdev.empty()) {
    const auto flags = sysfs.number(folder + "net/" + out.netdev + "/flags").value_or(0);
    out.netdev_up = (flags & IFF_UP) != 0;
  }
  return out;
}

base::Result<PhysicalFunction> read_physical_function(const Sysfs& sysfs,
                                                      const PciAddress& address) {
  const auto folder = sysfs.folder(address);
  const auto name = format(address);
  if (!sysfs.number(folder + "class")) {
    return base::fail("there is no PCI function " + name + "; lspci -D lists those that are there");
  }
  const auto most = sysfs.number(folder + "sriov_totalvfs");
  const auto count = sysfs.number(folder + "sriov_numvfs");
  if (!most || !count) {
    return base::fail("PCI function " + name +
                      " has no virtual functions to give (no sriov_totalvfs): it is no physical "
                      "function, or SR-IOV is off in the firmware");
  }
  PhysicalFunction out;
  out.address = address;
  out.vfs_max = static_cast<unsigned>(*most);
  out.autoprobe = sysfs.number(folder + "sriov_drivers_autoprobe").value_or(1) != 0;
  out.driver = sysfs.link_name(folder + "driver");
  out.netdev = netdev_of(sysfs, folder);
  out.node = node_of(sysfs, folder);
  for (unsigned index = 0; index < *count; ++index) {
    auto function = read_virtual_function(sysfs, address, index);
    if (!function) {
      return base::fail("PF " + name + " counts " + std::to_string(*count) + " VFs, and VF " +
                        std::to_string(index) +
                        " is not there: they come or go right now; "
                        "try again");
    }
    out.functions.push_back(*std::move(function));
  }
  return out;
}

Holders vfio_holders(const Sysfs& sysfs) {
  constexpr std::string_view prefix = "/dev/vfio/";
  Holders out;
  for (const auto& process : sysfs.names(sysfs.path("proc"))) {
    const auto pid = number_of<pid_t>(process);
    if (!pid) continue;
    const auto folder = sysfs.path("proc/") + process + "/";
    for (const auto& fd : sysfs.names(folder + "fd")) {
      const auto target = sysfs.link(folder + "fd/" + fd);
      if (!target.starts_with(prefix)) continue;
      const auto group = number_of<unsigned>(std::string_view{target}.substr(prefix.size()));
      if (!group) continue;  // the container: /dev/vfio/vfio
      const Holder holder{*pid, base::one_line(sysfs.text(folder + "comm").value_or("?"))};
      auto& holders = out[*group];
      if (holders.empty() || holders.back() != holder) holders.push_back(holder);
    }
  }
  return out;
}

std::string format(const std::vector<Holder>& holders) {
  std::string out;
  for (const auto& each : holders) {
    out += (out.empty() ? "process " : ", process ") + std::to_string(each.pid) + " (" + each.name +
           ")";
  }
  return out;
}

}  // namespace millrace::sriov

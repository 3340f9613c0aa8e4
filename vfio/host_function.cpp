#include "vfio/host_function.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>

namespace millrace::vfio {

using base::fail;
using base::Result;

namespace {

namespace fs = std::filesystem;

// What a link's target is called; empty: there is no such link.
std::string link_name(const fs::path& link) {
  std::error_code error;
  const auto target = fs::read_symlink(link, error);
  return error ? std::string{} : target.filename().string();
}

bool is_bridge(const fs::path& function) {
  std::error_code error;
  // A bridge's configuration has a secondary bus, which sysfs shows as a file of its own.
  return fs::exists(function / "secondary_bus_number", error);
}

}  // namespace

bool is_pci_address(std::string_view text) {
  constexpr std::string_view form{"hhhh:hh:hh.o"};
  if (text.size() != form.size()) return false;
  for (std::size_t i = 0; i < form.size(); ++i) {
    const char c = text[i];
    const bool octal = c >= '0' && c <= '7';
    const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (form[i] == 'h' ? !hex : form[i] == 'o' ? !octal : c != form[i]) return false;
  }
  return true;
}

Result<HostFunction> find_function(const std::string& address, const std::string& root) {
  if (!is_pci_address(address)) {
    return fail("'" + address + "' is no PCI address such as 0000:01:10.0 (lspci -D)");
  }
  const auto at = fs::path{root} / "sys/bus/pci/devices" / address;
  std::error_code error;
  if (!fs::exists(at, error)) return fail("there is no PCI function " + address + " (lspci -D)");
  HostFunction function;
  function.address = address;
  function.driver = link_name(at / "driver");
  const auto group = link_name(at / "iommu_group");
  unsigned number = 0;
  const auto* const end = group.data() + group.size();
  if (group.empty() || std::from_chars(group.data(), end, number).ptr != end) return function;
  function.group = number;
  for (const auto& entry : fs::directory_iterator{at / "iommu_group/devices", error}) {
    // The kernel's own driver of a bridge does no harm: it hands out no memory.
    if (!is_bridge(entry.path())) function.group_members.push_back(entry.path().filename());
  }
  std::ranges::sort(function.group_members);
  return function;
}

Result<void> check_ready(const HostFunction& function) {
  const auto& address = function.address;
  if (!function.group) {
    return fail(address +
                " has no IOMMU group: turn the IOMMU on (in the firmware, and intel_iommu=on or "
                "amd_iommu=on on the kernel's command line)");
  }
  if (function.driver == "vfio-pci") return {};
  return fail(
      address +
      (function.driver.empty() ? " has no driver" : " belongs to the driver " + function.driver) +
      ": bind it to vfio-pci (echo vfio-pci >/sys/bus/pci/devices/" + address + "/driver_override" +
      (function.driver.empty() ? "" : ", unbind it") + ", then echo " + address +
      " >/sys/bus/pci/drivers_probe)");
}

}  // namespace millrace::vfio

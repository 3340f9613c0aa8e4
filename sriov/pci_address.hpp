// PciAddress: where a PCI function is, as lspci -D and sysfs write it: "0000:01:10.3".
// Thread: any.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace::sriov {

struct PciAddress {
  std::uint32_t domain = 0;
  std::uint8_t bus = 0, device = 0, function = 0;

  auto operator<=>(const PciAddress&) const = default;
};

// "0000:01:10.3", or "01:10.3" in domain 0; either case. nullopt: anything else.
[[nodiscard]] std::optional<PciAddress> parse_pci_address(std::string_view text);
// With the domain, in lower case: the name of the function's folder in sysfs.
[[nodiscard]] std::string format(const PciAddress& address);

}  // namespace millrace::sriov

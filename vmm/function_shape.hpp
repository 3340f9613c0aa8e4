// FunctionShape: what of a host function's configuration space a guest is shown.
//
// A guest sees the identity, the memory BARs, MSI-X and the PCI Express capability; all else, other
// interrupts, power management, vendor's capabilities and extended space, is left out: what a guest
// does not see it cannot misuse, and drivers do without. Pure: it looks at bytes.
// PCI Local Bus 3.0 §6, PCI Express Base 4.0 §7.5.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "vfio/device.hpp"
#include "vmm/pci.hpp"

namespace millrace::vmm {

struct FunctionShape {
  struct Bar {
    std::uint64_t size = 0;  // as the guest sees it, 4 KiB at least; 0: there is none
    bool wide = false;       // takes the next one's place too
  };
  struct Table {
    unsigned bar = 0;
    std::uint64_t offset = 0, size = 0;
    // Whether an access or an area of that BAR touches it.
    [[nodiscard]] bool touches(unsigned in_bar, std::uint64_t at, std::uint64_t bytes) const {
      return in_bar == bar && at < offset + size && offset < at + bytes;
    }
    [[nodiscard]] bool holds(unsigned in_bar, std::uint64_t at, std::uint64_t bytes) const {
      return in_bar == bar && at >= offset && at + bytes <= offset + size;
    }
  };

  PciIdentity identity{};
  std::array<Bar, PciFunction::bars> bars{};
  std::uint8_t msix_at = 0;  // of its capability
  unsigned vectors = 0;
  Table table{}, pending{};
  std::uint8_t express_at = 0;  // 0: there is none
  std::uint8_t express_size = 0;
};

// From the first 256 bytes of a function's configuration space and the sizes of its BARs. Fails
// with the rest of a line: it is a bridge, has no MSI-X, or contradicts itself.
[[nodiscard]] base::Result<FunctionShape> shape_of(std::span<const std::byte, 256> config,
                                                   std::span<const std::uint64_t, 6> bar_sizes);

// What of `areas` of a BAR can be given to the guest as it is: whole pages that the MSI-X table and
// its pending bits do not touch.
[[nodiscard]] std::vector<vfio::Area> areas_for_guest(const FunctionShape& shape, unsigned bar,
                                                      std::span<const vfio::Area> areas);

}  // namespace millrace::vmm

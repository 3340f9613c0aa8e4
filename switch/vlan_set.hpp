// VlanSet: some of the VLANs that there can be.
#pragma once

#include <bitset>
#include <cstdint>

namespace millrace::vswitch {

inline constexpr std::uint16_t vlans_max = 4096;
using VlanSet = std::bitset<vlans_max>;

}  // namespace millrace::vswitch

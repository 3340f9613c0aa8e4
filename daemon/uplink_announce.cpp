#include "daemon/uplink_announce.hpp"

#include <algorithm>

#include "net/rarp.hpp"

namespace millrace::daemon {

std::vector<vswitch::Packet> announcements(const std::vector<vswitch::Fabric::Address>& addresses,
                                           const vswitch::UplinkConfig& uplink,
                                           const GuestPorts& guests) {
  std::vector<vswitch::Packet> frames;
  const auto& side = uplink.port;
  for (const auto& each : addresses) {
    const auto isolated = guests(each.port);
    if (!isolated || (*isolated && side.isolated)) continue;
    if (uplink.mac && *uplink.mac != each.mac) continue;
    const bool tagged = std::ranges::find(side.trunk, each.vlan) != side.trunk.end();
    const bool plain = each.vlan == side.access_vlan && (each.vlan != 0 || side.trunk.empty());
    if (!tagged && !plain) continue;
    net::make_rarp(each.mac, tagged ? each.vlan : std::uint16_t{0}, each.port,
                   frames.emplace_back());
  }
  return frames;
}

}  // namespace millrace::daemon

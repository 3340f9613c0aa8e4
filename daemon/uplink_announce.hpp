// What tells the network behind an uplink that guests are reached through it: a RARP for each
// guest's address, as QEMU sends after a migration. Switches learn from it where the guest is.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "switch/ethdev_port.hpp"
#include "switch/fabric.hpp"
#include "switch/packet.hpp"

namespace millrace::daemon {

// Whether the guest's port is isolated; nullopt: this is no guest's port.
using GuestPorts = std::function<std::optional<bool>(vswitch::PortId)>;

// The frames for an uplink of that configuration, which sends for its `mac` alone where it has one:
// of guests whose frames it would carry, in their VLAN, tagged where the uplink's are.
[[nodiscard]] std::vector<vswitch::Packet> announcements(
    const std::vector<vswitch::Fabric::Address>& addresses, const vswitch::UplinkConfig& uplink,
    const GuestPorts& guests);

}  // namespace millrace::daemon

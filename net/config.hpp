// net::Config: what one guest NIC is. Filled by daemon/ from TOML or a command.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "switch/fabric.hpp"

namespace millrace::net {

// 127 with a control queue: KICK, CALL and ERR carry an index of 8 bits.
inline constexpr unsigned pairs_max = 128;

struct Config {
  std::string name;
  unsigned pairs = 1;                 // queue pairs, 1..pairs_max
  std::optional<vswitch::Mac> mac{};  // none: the front-end's or guest's own
  std::uint16_t mtu = 0;              // 0: not offered; else 68..65535 (VIRTIO_NET_F_MTU)
  bool control_queue = false;         // the front-end hands the control queue over
  // With a control queue: offer RSS (of more than one pair), HASH_REPORT, NOTF_COAL.
  bool rss = true, hash_report = false, coalescing = true;
  bool offloads = true;                 // checksum and segmentation offload bits
  bool packed = true, in_order = true;  // offer RING_PACKED, IN_ORDER
  bool link_changes = false;            // set_link() is called: the guest is to hear of it
  bool ring_reset = false;  // offer RING_RESET: the front-end stops a queue that its guest resets
  vswitch::PortConfig port{};  // VLANs, isolation, quota
};

}  // namespace millrace::net

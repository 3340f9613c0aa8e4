// net::Status: one guest NIC as status shows it. Filled by control from counters; a copy.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "net/call_pacer.hpp"
#include "virtio/device_base.hpp"

namespace millrace::net {

// Directions are the guest's. Traffic counts from the creation of the device, over all starts.
struct PairStatus {
  virtio::DeviceBase::QueueStatus rx, tx;
  std::uint64_t rx_packets = 0, rx_bytes = 0, tx_packets = 0, tx_bytes = 0;
};

// What the driver set up over the control queue.
struct DriverStatus {
  unsigned pairs = 0;            // that may receive
  bool steered = false;          // by a table of the driver's
  std::uint32_t hash_types = 0;  // as it asked for (virtio 1.2 §5.1.6.4.3); 0: nothing is hashed
  Coalescing receive, transmit;
};

struct Status {
  bool connected = false;
  std::uint16_t mtu = 0;               // 0: not set
  bool link_up = true;                 // as the driver is told
  std::string offloads;                // negotiated, as words; "none" without a guest
  std::optional<DriverStatus> driver;  // none: it has no control queue here
  std::vector<PairStatus> pairs;
};

}  // namespace millrace::net

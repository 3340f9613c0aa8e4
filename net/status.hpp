// net::Status: one guest NIC as status shows it. Filled by control from counters; a copy.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "virtio/device_base.hpp"

namespace millrace::net {

// Directions are the guest's. Traffic counts from the creation of the device, over all starts.
struct PairStatus {
  virtio::DeviceBase::QueueStatus rx, tx;
  std::uint64_t rx_packets = 0, rx_bytes = 0, tx_packets = 0, tx_bytes = 0;
};

struct Status {
  bool connected = false;
  std::uint16_t mtu = 0;  // 0: not set
  std::string offloads;   // negotiated, as words; "none" without a guest
  std::vector<PairStatus> pairs;
};

}  // namespace millrace::net

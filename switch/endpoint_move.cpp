#include "switch/endpoint_move.hpp"

#include <algorithm>

namespace millrace::vswitch {

WaitingPort::WaitingPort(PortCounters& counters) : counters_{counters} {
  parcels_.reserve(ParcelPool::chunk_count);
}

void WaitingPort::deliver(std::span<const Packet* const> packets) noexcept {
  if (port_ != nullptr) return port_->deliver(packets);
  for (const Packet* packet : packets) {
    Parcel* const parcel = pool_.pack(*packet, Parcel::chunks_max);
    if (parcel == nullptr) {
      counters_.drop_link_full.add();
      continue;
    }
    parcels_.push_back(parcel);  // a parcel has a chunk at least: there is room
  }
}

void WaitingPort::release(Port& port) noexcept {
  port_ = &port;
  std::array<const Packet*, burst_max> burst;
  for (std::size_t at = 0; at < parcels_.size(); at += burst_max) {
    const std::size_t count = std::min(burst_max, parcels_.size() - at);
    for (std::size_t i = 0; i < count; ++i) burst[i] = &parcels_[at + i]->packet;
    port.deliver({burst.data(), count});
  }
  parcels_.clear();  // the chunks go with the pool
}

}  // namespace millrace::vswitch

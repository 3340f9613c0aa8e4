// Port: the receiving end of a switch port on one reactor: a guest's receive queue, or a NIC's
// transmit queue. A switch port has one Port for each queue it receives on ("endpoint").
// Thread: the owning reactor.
#pragma once

#include <span>

#include "switch/counters.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

class Port {
 public:
  virtual ~Port() = default;
  // Takes every packet: copied out or dropped and counted by reason, never kept past the call (but
  // see Packet::completion). One call a burst and destination. Never drops because the peer lacks
  // an offload: it segments and checksums in software (gso.hpp). Adds rx_packets, rx_bytes and its
  // own drops to Fabric::counters; the Bridge adds the rest.
  virtual void deliver(std::span<const Packet* const> packets) noexcept = 0;
  // Whether it puts tags on by itself, which its device does: then what is to have one gets there
  // by deliver_apart(), where each packet is to have the tag of its vlan and priority.
  [[nodiscard]] virtual bool tags_by_itself() const noexcept { return false; }
  virtual void deliver_apart(std::span<const Packet* const> packets) noexcept { deliver(packets); }
};

}  // namespace millrace::vswitch

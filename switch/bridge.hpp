// Bridge: one reactor's shard of the switch: learns, decides, replicates, delivers.
//
// Every reactor has its own Bridge with its own MacTable; what one learns travels to the others
// through the links, like packets for endpoints that another reactor owns. Nothing is shared but
// the links. Thread: its reactor.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/poller.hpp"
#include "base/reactor.hpp"
#include "switch/counters.hpp"
#include "switch/packet.hpp"
#include "switch/port.hpp"

namespace millrace::vswitch {

class Bridge : public base::Poller {
 public:
  Bridge() : burst_{std::make_unique<Burst>()} {}
  ~Bridge() override = default;
  // Forwards a burst that entered at `ingress`: VLAN and source checks, learning, look-up,
  // flooding, delivery. On return every packet was delivered or dropped and counted. Adds
  // tx_packets and tx_bytes of `ingress`; checks every offload request (validate_offload). It may
  // edit headers, views and length (VLAN tags): the source relies on completion and token only
  // afterwards.
  virtual void forward(PortId ingress, std::span<Packet> packets) noexcept = 0;
  // The same of packets whose outermost 802.1Q tag may have been taken off by a device: it was
  // where tag_apart says so, and is in vlan and priority. All else is as if it were in the header.
  virtual void forward_apart(PortId ingress, std::span<Packet> packets) noexcept = 0;
  // Whether somebody wants a copy of frames that a device has written where the port that is paired
  // with `ingress` looks for them. Asked once a burst.
  [[nodiscard]] virtual bool mirrors_direct(PortId ingress) const noexcept = 0;
  // Copies such frames (as those of forward_apart()) to the mirrors, and nowhere else. Before their
  // receiver hears of them.
  virtual void mirror_direct(PortId ingress, std::span<Packet> packets) noexcept = 0;
  // Room for the packets of one visit to a source, for whichever is being visited: with a burst for
  // each, many sources would not leave anything in the processor's caches.
  using Burst = std::array<Packet, burst_max>;
  [[nodiscard]] Burst& burst() noexcept { return *burst_; }

 private:
  std::unique_ptr<Burst> burst_;
};

}  // namespace millrace::vswitch

// Fabric: control's side of the switch: ports, their VLANs and endpoints, and all reactors'
// Bridges. Thread: control. Members with `done` answer from the event loop when every reactor has
// acknowledged.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/handover.hpp"
#include "base/reactor_pool.hpp"
#include "base/result.hpp"
#include "switch/bridge.hpp"
#include "switch/mirror.hpp"
#include "switch/steering.hpp"

namespace millrace::vswitch {

using Mac = std::array<std::uint8_t, 6>;

struct PortConfig {
  std::string name;
  std::uint16_t access_vlan = 0;     // 0: untagged world; else 1..4094
  std::vector<std::uint16_t> trunk;  // not empty: tagged frames of these VLANs
  bool isolated = false;             // reaches only ports that are not isolated
  bool alone = false;                // reaches only the port that it is paired with
  bool uplink = false;
  // Of an uplink: the switch at its other end decides what guests may say to each other. While such
  // a port is there, no frame goes from one guest's port to another's; it goes out here, and comes
  // back to whom it is for. At most one with endpoints.
  bool vepa = false;
  unsigned addresses_max = 1024;  // learned addresses (quota)
  std::vector<Mac> static_macs;   // known from the start, never aged; nobody else may use them
};

// Whether its frames are told apart by their VLAN.
[[nodiscard]] inline bool has_vlans(const PortConfig& port) {
  return port.access_vlan != 0 || !port.trunk.empty();
}

// Of a pair, the VLAN whose frames the uplink has with tags and the port without; 0: neither has
// VLANs. None: the switch has to look at each frame.
[[nodiscard]] inline std::optional<std::uint16_t> vlan_of_pair(const PortConfig& port,
                                                               const PortConfig& uplink) {
  if (!has_vlans(port) && !has_vlans(uplink)) return 0;
  const bool tagged = port.access_vlan != 0 && uplink.access_vlan == 0 &&
                      std::ranges::find(uplink.trunk, port.access_vlan) != uplink.trunk.end();
  if (!tagged || !port.trunk.empty()) return std::nullopt;
  return port.access_vlan;
}

struct FabricConfig {
  std::uint64_t ageing_ns = 300ull * 1'000'000'000;
  unsigned addresses_max = 65'536;
};

class Fabric {
 public:
  using Done = std::function<void()>;
  static constexpr unsigned reactors_max = 64;
  // `pool` must outlive it. Destroying it stops the pool's reactors; callbacks that are still due
  // then never run.
  static base::Result<std::unique_ptr<Fabric>> make(base::ReactorPool& pool,
                                                    const FabricConfig& config);
  virtual ~Fabric() = default;

  virtual base::Result<PortId> add_port(const PortConfig& config, Done done) = 0;
  // Flushes its addresses; its endpoints must be gone (their remove_endpoint called, not
  // necessarily answered).
  virtual void remove_port(PortId port, Done done) = 0;
  // `endpoint` lives on `reactor`; flows spread over a port's endpoints by hash. `slot` orders them
  // (queue pair index).
  virtual void add_endpoint(PortId port, unsigned slot, unsigned reactor, Port* endpoint,
                            Done done) = 0;
  // After done() nobody calls the endpoint again.
  virtual void remove_endpoint(PortId port, unsigned slot, Done done) = 0;
  using Handed = std::function<void(std::shared_ptr<base::Handover>)>;
  // The endpoint is about to be handed from its reactor to another one. Before the handover that
  // `go` is given begins, frames for it wait at the new owner; none is lost or overtaken. Then
  // end_move(); in between the endpoint is not removed.
  virtual void move_endpoint(PortId port, unsigned slot, unsigned reactor, Handed go) = 0;
  virtual void end_move(PortId port, unsigned slot, Done done) = 0;
  // For the move of somebody who calls bridge(reactor).forward(): lets them go once all frames that
  // they sent to other reactors have been delivered.
  [[nodiscard]] virtual std::shared_ptr<base::Handover> move_sender(unsigned reactor) = 0;
  // From done() on the port's owner says by which slot a packet is received; nullptr: the port
  // spreads its flows by itself again. A slot without an endpoint drops (drop_no_queue).
  virtual void set_steering(PortId port, std::shared_ptr<const Steering> steering, Done done) = 0;
  // Two ports that are alone, each at most in one pair: what one sends gets to the other, past all
  // addresses. It ends when one of them is removed.
  virtual void pair(PortId one, PortId other, Done done) = 0;
  // A mirror, by its destination, which is one mirror's alone. Its addresses are flushed. Refused
  // where a port would be both ends of mirrors, or is bound to another port.
  virtual base::Result<> add_mirror(const MirrorConfig& config, Done done) = 0;
  // After done() the destination is a port like others. A port that is removed leaves its mirrors;
  // one that is a mirror's destination ends it.
  virtual void remove_mirror(PortId to, Done done) = 0;
  [[nodiscard]] virtual MirrorFigures mirror_figures(PortId to) const = 0;
  // The reactor's shard. The pointer stays valid as long as the Fabric.
  [[nodiscard]] virtual Bridge& bridge(unsigned reactor) = 0;
  // This port's counters on one reactor: a Port on that reactor adds to them. Stable until
  // remove_port.
  [[nodiscard]] virtual PortCounters& counters(PortId port, unsigned reactor) = 0;
  // Forgets learned addresses of `port`, or all with no_port.
  virtual void flush_addresses(PortId port, Done done) = 0;

  struct Address {
    Mac mac;
    std::uint16_t vlan;
    PortId port;
    std::uint64_t age_ns;
    bool is_static;
  };
  // A copy of reactor 0's table, for status.
  virtual void list_addresses(std::function<void(std::vector<Address>)> done) = 0;
};

}  // namespace millrace::vswitch

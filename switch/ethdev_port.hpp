// EthdevPort: a DPDK ethdev as a switch port (an uplink): receives by rte_eth_rx_burst, transmits
// copies. Each queue's data path is on one reactor; set-up and removal are control's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/reactor_pool.hpp"
#include "switch/fabric.hpp"

namespace millrace::vswitch {

struct UplinkConfig {
  std::string name;
  std::string device;  // a DPDK device string: net_tap0,iface=mill0; or see pci
  PortConfig port;
  bool pci = false;  // device is the address of a PCI function that vfio-pci drives: 0000:01:00.0
  unsigned queues = 1;     // receive and transmit queues, each on a reactor of its own
  std::uint16_t mtu = 0;   // 0: the most that the device can, up to 9216
  std::optional<Mac> mac;  // the one station behind it: for a function that hears nobody else
};

struct UplinkStatus {
  struct Queue {
    unsigned reactor = 0;
    std::uint64_t received = 0, sent = 0;  // frames
    std::uint64_t interrupts = 0;          // that said that frames wait
  };
  std::string name, device, driver;
  bool link_up = false;
  std::uint32_t speed_mbps = 0;
  std::uint16_t mtu = 0;
  std::vector<Queue> queues;  // at least one
  Mac mac{};
};

class Uplink {
 public:
  virtual ~Uplink() = default;
  [[nodiscard]] virtual UplinkStatus status() const = 0;
  [[nodiscard]] virtual PortId port() const = 0;
  // Takes it off its reactor and closes the device; `done` runs on control, then it may be
  // destroyed.
  virtual void close(std::function<void()> done) = 0;
  // A descriptor that is readable once the host wants the device back and waits for close(); -1:
  // that cannot happen. Valid until close().
  [[nodiscard]] virtual int departure_fd() const = 0;
  // What the driver counts by itself: missed frames, errors of the wire.
  struct DriverCounter {
    std::string name;
    std::uint64_t value;
  };
  [[nodiscard]] virtual std::vector<DriverCounter> driver_counters() const = 0;
};

// Needs an initialised EAL (daemon/eal). Hot-plugs the device, starts its queues, joins the switch.
// `done` runs when it carries packets. Errors in one line.
base::Result<std::unique_ptr<Uplink>> open_uplink(const UplinkConfig& config,
                                                  base::ReactorPool& pool, Fabric& fabric,
                                                  std::function<void()> done);

}  // namespace millrace::vswitch

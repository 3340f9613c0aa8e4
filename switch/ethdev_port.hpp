// EthdevPort: a DPDK ethdev as a switch port (an uplink): receives by rte_eth_rx_burst, transmits
// copies. The data path is on one reactor; set-up and removal are control's. The only door to
// <rte_*> here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/reactor_pool.hpp"
#include "switch/fabric.hpp"

namespace millrace::vswitch {

struct UplinkConfig {
  std::string name;
  std::string device;  // a DPDK device string: net_tap0,iface=mill0
  PortConfig port;
};

struct UplinkStatus {
  std::string name, device, driver;
  bool link_up = false;
  std::uint32_t speed_mbps = 0;
  std::uint16_t mtu = 0;
  unsigned reactor = 0;
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
  // What the driver counts by itself: missed frames, errors of the wire.
  struct DriverCounter {
    std::string name;
    std::uint64_t value;
  };
  [[nodiscard]] virtual std::vector<DriverCounter> driver_counters() const = 0;
};

// Needs an initialised EAL (daemon/eal). Hot-plugs the device, starts one receive and one transmit
// queue, joins the switch. `done` runs when it carries packets. Errors in one line.
base::Result<std::unique_ptr<Uplink>> open_uplink(const UplinkConfig& config,
                                                  base::ReactorPool& pool, Fabric& fabric,
                                                  std::function<void()> done);

}  // namespace millrace::vswitch

// EthdevDevice: a DPDK ethdev from hot-plug to removal: its queues, a pool for each. Needs an
// initialised EAL. Thread: control; opened and closed (destroyed) by one thread at a time, while no
// other makes or unmakes a device.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "switch/direct_pool.hpp"
#include "switch/ethdev_departure.hpp"
#include "switch/ethdev_port.hpp"
#include "switch/ethdev_queue.hpp"

struct rte_eth_conf;
struct rte_eth_dev_info;

namespace millrace::vswitch {

class EthdevDevice {
 public:
  // Plugs in and starts a virtual device of DPDK's (NAME[,key=value...]), or a PCI function that
  // vfio-pci drives and nobody has open.
  static base::Result<std::unique_ptr<EthdevDevice>> open(const UplinkConfig& config);
  using Numbers = std::vector<std::uint16_t>;  // DPDK's, of devices
  // Makes and starts a bond of devices that are plugged in.
  static base::Result<std::unique_ptr<EthdevDevice>> open_bond(const UplinkConfig& config,
                                                               const Numbers& members);
  // Plugs in a device for a bond, which configures, starts and stops it.
  static base::Result<std::unique_ptr<EthdevDevice>> plug_member(const UplinkConfig& config);
  ~EthdevDevice();  // stops it, unplugs it, frees the pools; no reactor may poll it any more
  EthdevDevice(const EthdevDevice&) = delete;
  EthdevDevice& operator=(const EthdevDevice&) = delete;

  [[nodiscard]] const std::vector<EthdevQueueConfig>& queues() const { return queues_; }
  [[nodiscard]] std::uint16_t number() const { return device_; }
  // Of a bond. False: the driver refuses it.
  [[nodiscard]] bool take(std::uint16_t member);
  // Readable once the host wants the device back; -1: never.
  [[nodiscard]] int departure_fd() const { return departure_ ? departure_->fd() : -1; }
  [[nodiscard]] LinkState link() const;
  // Drops what waits in the receive queues, as many frames as they hold. Nobody else polls them.
  void forget_received();
  // Stops it and starts it again, which may take seconds: then it knows none of the buffers that it
  // had. Its queues' wake_fd may be others. Any thread, while nobody polls them. After an error it
  // may know them still, and is to be closed.
  [[nodiscard]] base::Result<> restart();
  [[nodiscard]] std::optional<Uplink::Group> group() const;
  // Fills everything but names, reactors and what queues count.
  void read_status(UplinkStatus& status) const;
  [[nodiscard]] std::vector<Uplink::DriverCounter> counters() const;

 private:
  explicit EthdevDevice(const UplinkConfig& config, std::string name);
  [[nodiscard]] const char* bus() const { return config_.pci ? "pci" : "vdev"; }
  [[nodiscard]] static base::Result<std::unique_ptr<EthdevDevice>> plugged(
      const UplinkConfig& config);
  [[nodiscard]] base::Result<> plug(const std::string& arguments);
  [[nodiscard]] base::Result<> add_members(const Numbers& members);
  [[nodiscard]] base::Result<> bring_up();
  [[nodiscard]] base::Result<std::uint16_t> choose_mtu(const rte_eth_dev_info& info) const;
  [[nodiscard]] base::Result<> choose_zero_copy();
  [[nodiscard]] base::Result<> choose_gro(const rte_eth_dev_info& info, rte_eth_conf& conf);
  [[nodiscard]] base::Result<> make_direct_pool(std::uint16_t mtu);
  void choose_offloads(const rte_eth_dev_info& info, rte_eth_conf& conf);
  // ethdev_vlan.cpp
  [[nodiscard]] bool is_virtual_function() const;
  [[nodiscard]] base::Result<> choose_vlans(const rte_eth_dev_info& info, rte_eth_conf& conf);
  [[nodiscard]] base::Result<> tell_vlans();
  [[nodiscard]] base::Result<> make_queues();
  [[nodiscard]] base::Result<> start(const rte_eth_dev_info& info, rte_eth_conf& conf);
  [[nodiscard]] base::Result<> set_up_queue(EthdevQueueConfig& queue, const rte_eth_dev_info& info,
                                            const rte_eth_conf& conf);
  [[nodiscard]] base::Result<> hear_everybody();
  // Of it, or of a bond's members.
  template <class Is>
  [[nodiscard]] bool any_driver(Is is) const;
  void find_wake_descriptors();
  [[nodiscard]] base::Error error(const std::string& doing, int result) const;

  const UplinkConfig config_;
  std::string name_, driver_;
  std::uint16_t device_ = 0;  // DPDK's number
  EthdevQueueConfig common_;
  std::vector<EthdevQueueConfig> queues_;
  std::unique_ptr<DirectPool> direct_;  // of the only queue; null: it receives into no guest
  bool plugged_ = false, interrupts_ = false;
  bool filters_ = false;  // it gets frames of the VLANs alone that it is told
  bool checks_ = false;   // checksums of what comes
  std::unique_ptr<Departure> departure_;
};

}  // namespace millrace::vswitch

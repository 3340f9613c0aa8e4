// EthdevDevice: a DPDK ethdev from hot-plug to removal: one receive queue, one transmit queue, a
// pool. Thread: control. Needs an initialised EAL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "switch/ethdev_port.hpp"
#include "switch/ethdev_queue.hpp"

namespace millrace::vswitch {

class EthdevDevice {
 public:
  // Plugs `device` (NAME[,key=value...], a virtual device of DPDK) in and starts it.
  static base::Result<std::unique_ptr<EthdevDevice>> open(const std::string& device);
  ~EthdevDevice();  // stops it, unplugs it, frees the pool; no reactor may poll it any more
  EthdevDevice(const EthdevDevice&) = delete;
  EthdevDevice& operator=(const EthdevDevice&) = delete;

  [[nodiscard]] const EthdevQueueConfig& queue() const { return queue_; }
  // Fills everything but names and the reactor.
  void read_status(UplinkStatus& status) const;
  [[nodiscard]] std::vector<Uplink::DriverCounter> counters() const;

 private:
  explicit EthdevDevice(std::string name) : name_{std::move(name)} {}
  [[nodiscard]] base::Result<> configure();
  [[nodiscard]] base::Result<> start();
  [[nodiscard]] base::Error error(const std::string& doing, int result) const;

  std::string name_, driver_;
  EthdevQueueConfig queue_;
  bool plugged_ = false, started_ = false;
};

}  // namespace millrace::vswitch

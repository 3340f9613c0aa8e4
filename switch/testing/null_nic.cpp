#include "switch/testing/null_nic.hpp"

#include <rte_ethdev.h>

namespace millrace::vswitch::testing {

namespace {

int status(void*, std::uint16_t) {
  NullNic::asked.fetch_add(1, std::memory_order_relaxed);
  return NullNic::done.load(std::memory_order_acquire) ? RTE_ETH_TX_DESC_DONE
                                                       : RTE_ETH_TX_DESC_FULL;
}

}  // namespace

NullNic::NullNic() {
  UplinkConfig config;
  config.name = config.device = "net_null_nic,no-rx=1";
  device_ = *EthdevDevice::open(config);
  // Its own driver says nothing of its descriptors.
  rte_eth_fp_ops[device_->queues().front().device].tx_descriptor_status = status;
  done = true;
}

EthdevQueueConfig NullNic::queue(std::uint32_t zero_copy_min) const {
  auto out = device_->queues().front();
  out.zero_copy_min = zero_copy_min;
  out.tx_ring = ring;
  return out;
}

}  // namespace millrace::vswitch::testing

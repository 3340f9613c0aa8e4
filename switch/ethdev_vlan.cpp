// EthdevDevice: who puts 802.1Q tags on and takes them off, and of which VLANs the device is told.
//
// Where frames have tags on the wire (the port is a trunk) and the device can, it does both. The
// families of e1000 put a tag on only while they take tags off (one bit, CTRL.VME), whatever their
// drivers offer.
//
// A virtual function gets frames of those VLANs alone that it asks for, and its owner, the physical
// function, then takes their tags off, asked to or not. Its owner may also have put it into a VLAN
// without its knowledge; tags of that come with its frames, and are none of the function's.
#include <rte_ethdev.h>

#include <filesystem>

#include "switch/ethdev_device.hpp"

namespace millrace::vswitch {

namespace {

// They put tags on while they take them off, or not at all.
bool does_both_or_none(const std::string& driver) {
  return driver == "net_e1000_igb" || driver == "net_e1000_em";
}
// VLANs that a function can be in, where its driver does not hear that there are too many: those of
// the NIC's table but for VLAN 0. All functions of the NIC share them.
constexpr std::size_t igb_vlans_max = 31;
constexpr const char* functions_at = "/sys/bus/pci/devices/";

}  // namespace

bool EthdevDevice::is_virtual_function() const {
  std::error_code none;
  return config_.pci && std::filesystem::exists(functions_at + name_ + "/physfn", none);
}

base::Result<> EthdevDevice::choose_vlans(const rte_eth_dev_info& info, rte_eth_conf& conf) {
  const auto& vlans = config_.port.trunk;
  if (vlans.empty()) return {};
  const bool function = is_virtual_function();
  if (function && driver_ == "net_e1000_igb_vf" && vlans.size() > igb_vlans_max) {
    return base::fail("uplink device " + name_ + " (" + driver_ + ") can be in " +
                      std::to_string(igb_vlans_max) + " VLANs, trunk has " +
                      std::to_string(vlans.size()) +
                      "; give fewer, or make the whole NIC the uplink");
  }
  const auto offers = [&info](std::uint64_t offload) {
    return (info.rx_offload_capa & offload) != 0;
  };
  common_.vlan_strip = offers(RTE_ETH_RX_OFFLOAD_VLAN_STRIP);
  common_.vlan_insert = (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_VLAN_INSERT) != 0 &&
                        (common_.vlan_strip || !any_driver(does_both_or_none));
  // A direct one's frames are written before anybody looks at them: others' are kept out.
  filters_ = (function || config_.direct) && offers(RTE_ETH_RX_OFFLOAD_VLAN_FILTER);
  if (common_.vlan_strip) conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
  if (common_.vlan_insert) conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
  if (filters_) conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_VLAN_FILTER;
  if (!function) return {};
  auto own = std::make_shared<VlanSet>();
  for (const auto vlan : vlans) own->set(vlan);
  common_.vlans = std::move(own);
  return {};
}

// After it was started, each time: a function's owner forgets them when it is reset.
base::Result<> EthdevDevice::tell_vlans() {
  if (!filters_) return {};
  for (const auto vlan : config_.port.trunk) {
    const int r = rte_eth_dev_vlan_filter(device_, vlan, 1);
    if (r != 0) return base::Unexpected{error("have it hear VLAN " + std::to_string(vlan), r)};
  }
  return {};
}

}  // namespace millrace::vswitch

#include "daemon/uplink_lease.hpp"

#include "base/log.hpp"

namespace millrace::daemon {

base::Result<sriov::VfLease> lease_for(UplinkEntry& entry, sriov::VfPool& pool, int node) {
  // The one that it had before, if any, is lost.
  auto lease = pool.lease({.holder = "uplink " + entry.uplink.name,
                           .physical = entry.pf,
                           .node = node,
                           .last = sriov::parse_pci_address(entry.uplink.device)});
  if (!lease) return lease;
  if (entry.uplink.mac) {
    const auto set = lease->set(sriov::Setting{*entry.uplink.mac});
    if (!set) {
      lease->was_not_used();
      return base::Unexpected{set.error()};
    }
  } else {
    for (const sriov::Setting& wanted :
         {sriov::Setting{sriov::Trust{true}}, sriov::Setting{sriov::SpoofCheck{false}}}) {
      const auto set = lease->set(wanted);
      if (!set) spdlog::info("uplink {}: {}", entry.uplink.name, set.error().message);
    }
  }
  entry.uplink.pci = true;
  entry.uplink.device = sriov::format(lease->function().address);
  return lease;
}

}  // namespace millrace::daemon

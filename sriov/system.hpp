// System: Privileged on this machine's kernel, by sysfs and rtnetlink. Thread: control, but for
// reset().
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "sriov/netlink.hpp"
#include "sriov/privileged.hpp"
#include "sriov/sysfs.hpp"

namespace millrace::sriov {

class System final : public Privileged {
 public:
  // `sysfs` must outlive it. Nothing is opened before it is needed.
  explicit System(const Sysfs& sysfs) : sysfs_{sysfs} {}

  base::Result<Link> link(const std::string& netdev) override;
  base::Result<void> set_up(const std::string& netdev, bool up) override;
  base::Result<void> set(const std::string& netdev, unsigned vf, const Setting& setting) override;
  base::Result<void> set_autoprobe(const PciAddress& physical, bool on) override;
  base::Result<void> set_vf_count(const PciAddress& physical, unsigned count) override;
  base::Result<void> bind(const PciAddress& function, const std::string& driver) override;
  base::Result<void> reset(const PciAddress& function) override;
  base::Result<base::Fd> claim_group(unsigned group) override;

 private:
  base::Result<Netlink*> netlink();
  [[nodiscard]] base::Result<void> write(const std::string& path, std::string_view text) const;

  [[nodiscard]] base::Result<void> rebind(const std::string& name, const std::string& folder,
                                          const std::string& driver) const;

  const Sysfs& sysfs_;
  std::optional<Netlink> netlink_;
};

}  // namespace millrace::sriov

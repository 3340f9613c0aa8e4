// FakeHost: a host's kernel for tests: /sys and /proc in a folder of their own, and Privileged acts
// that change them as the kernel would. One physical function, "eth7", with up to 8 functions.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "sriov/privileged.hpp"
#include "sriov/sysfs.hpp"

namespace millrace::sriov::testing {

class FakeHost final : public Privileged {
 public:
  static constexpr PciAddress pf{0, 1, 0, 0};
  static constexpr unsigned vfs_max = 8;
  // The PCI address of a function of ours; its IOMMU group is 10 + index.
  [[nodiscard]] static PciAddress vf(unsigned index);
  [[nodiscard]] static unsigned group(unsigned index) { return 10 + index; }

  // With `vfs` functions that are there already, of `driver`.
  explicit FakeHost(unsigned vfs = 0, const std::string& driver = {});
  ~FakeHost() override;

  [[nodiscard]] const Sysfs& sysfs() const { return sysfs_; }
  // Writes a file or makes a symbolic link below the root, and the folders it lies in.
  void file(const std::string& path, const std::string& text);
  void link_to(const std::string& path, const std::string& target);
  // A process that has a function's group open: seen in /proc, and one that is not.
  void hold(unsigned index, int pid, const std::string& name);
  void let_go(int pid) { remove("proc/" + std::to_string(pid)); }
  void hold_unseen(unsigned index) { unseen_.insert(group(index)); }
  // The function has a network interface of the host's, which is up.
  void netdev_up(unsigned index, const std::string& name);

  // The next act whose line (see `acts`) begins so is refused, with this reason.
  void refuse(const std::string& beginning, const std::string& reason) {
    refusals_[beginning] = reason;
  }
  // Values that the driver takes and does not keep, or does not tell of.
  bool forgets_rates = false, hides_trust = false;
  bool no_carrier = false;
  // What was done, one line each: "vf 1 MAC 52:54:00:00:00:01".
  std::vector<std::string> acts;

  [[nodiscard]] VfValues values(unsigned index) const { return functions_.at(index); }
  [[nodiscard]] bool up() const { return up_; }
  [[nodiscard]] std::string driver(unsigned index) const;
  // The values as after a reset that nobody told of.
  void lose_values();

  base::Result<Link> link(const std::string& netdev) override;
  base::Result<void> set_up(const std::string& netdev, bool up) override;
  base::Result<void> set(const std::string& netdev, unsigned vf, const Setting& setting) override;
  base::Result<void> set_autoprobe(const PciAddress& physical, bool on) override;
  base::Result<void> set_vf_count(const PciAddress& physical, unsigned count) override;
  base::Result<void> bind(const PciAddress& function, const std::string& driver) override;
  base::Result<void> reset(const PciAddress& function) override;
  base::Result<base::Fd> claim_group(unsigned group) override;

 private:
  base::Result<void> act(const std::string& line);
  void make_function(unsigned index, const std::string& driver);
  void remove(const std::string& path);

  std::string root_;
  Sysfs sysfs_;
  bool up_ = false;
  std::vector<VfValues> functions_;
  std::map<std::string, std::string> refusals_;
  std::set<unsigned> unseen_;
};

}  // namespace millrace::sriov::testing

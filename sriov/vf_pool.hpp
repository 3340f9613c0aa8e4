// VfPool: lends the virtual functions of the managed physical functions, each to one holder: to
// parts of this process, for as long as they have the lease, and to guests that drive one
// themselves, until it is taken back, also when the pool and its process are long gone.
//
// Which one: of those that nobody holds, first on the asked NUMA node, then of the physical
// function that has lent the fewest, then the lowest index. A function that a process outside holds
// (its group is open) or that a network interface of the host's is up on is never lent. Thread:
// control. Nothing waits but a function's reset: in the kernel some 100 ms, and a minute for one
// that does not come back, so that it may be done elsewhere (VfLease::reset).
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.hpp"
#include "base/numa.hpp"
#include "base/result.hpp"
#include "sriov/functions.hpp"
#include "sriov/privileged.hpp"
#include "sriov/wish.hpp"

namespace millrace::sriov {

struct VfRequest {
  std::string holder{};                  // for a person: "uplink wan0"
  std::optional<PciAddress> physical{};  // nullopt: of any
  int node = base::any_node;             // where its user runs
  std::optional<PciAddress> last{};      // of all that are free: one that failed its holder
};

// A guest that drives a function itself.
struct VfGuest {
  std::string name;  // each has one function at most
  VfValues values;   // what the function is set to while it is the guest's
  bool operator==(const VfGuest&) const = default;
};

// What a lent function was before its holder, or a holder of a pool that died, changed it.
struct ChangedVf {
  PciAddress physical;
  unsigned index = 0;
  PciAddress function;             // that had this index then
  VfValues before;                 // only what was changed
  std::optional<VfGuest> guest{};  // whose it is, whatever becomes of the pool
  bool operator==(const ChangedVf&) const = default;
};

// "PF 0000:01:00.0: VF 3": what begins a line about it.
[[nodiscard]] std::string name_of(const PciAddress& physical, unsigned index);

class VfPool;

// A function that is lent. Destroying it gives the function back: it is reset, and the settings
// that it had when it was lent are restored. The holder has closed it by then. Must not outlive the
// pool.
class [[nodiscard]] VfLease {
 public:
  VfLease(VfLease&& other) noexcept;
  VfLease& operator=(VfLease&& other) noexcept;
  ~VfLease();

  // Bound to vfio-pci.
  [[nodiscard]] const VirtualFunction& function() const { return function_; }
  [[nodiscard]] const PciAddress& physical() const { return physical_; }
  // Changes a setting for as long as it is lent. Equal values are skipped: a change may reset the
  // function, so its user sets what it needs before it opens it.
  base::Result<void> set(const Setting& setting);
  // The settings as they are now.
  [[nodiscard]] base::Result<VfValues> values() const;
  // Ahead of giving it back, which then resets it no more. Its holder has closed it. Any thread,
  // while nobody else has this lease. What failed is told to the pool's `warn` later.
  void reset();
  // Nobody has opened it: giving it back resets nothing.
  void was_not_used() { reset_ = base::Result<void>{}; }

 private:
  friend class VfPool;
  VfLease(VfPool* pool, PciAddress physical, VirtualFunction function)
      : pool_{pool}, physical_{physical}, function_{std::move(function)} {}

  VfPool* pool_;
  PciAddress physical_;
  VirtualFunction function_;
  std::optional<base::Result<void>> reset_{};  // nullopt: still to be done
  base::Fd claim_{};  // on its group: nobody opens it while it is given back
};

class VfPool {
 public:
  using Warn = std::function<void(const std::string& line)>;

  // Both must outlive it. `warn` is told what could not be restored.
  VfPool(const Sysfs& sysfs, Privileged& privileged, Warn warn);
  // No VfLease is left. Guests keep what they have.
  ~VfPool();
  VfPool(const VfPool&) = delete;
  VfPool& operator=(const VfPool&) = delete;

  // Told of all that is changed, before a setting is made that changes it, and when it is restored,
  // and of all that guests have; none: nothing is. An error is told to `warn`, and the setting made
  // all the same; a guest is lent nothing then.
  using Keep = std::function<base::Result<void>(const std::vector<ChangedVf>& changed)>;
  void keep_by(Keep keep) { keep_ = std::move(keep); }
  // What a pool that died was told to keep: what guests have is theirs here as well, and nothing of
  // it is touched. Of the others the settings that they had are restored, where the functions are
  // still there and nobody holds them. `warn` is told of the rest.
  void restore(const std::vector<ChangedVf>& changed);

  // Lends from this physical function from now on. Its functions are looked up at each request.
  void manage(const PciAddress& physical);

  // The function is bound to vfio-pci when this answers. Errors: none is free, with what holds
  // each; what failed has lent nothing.
  base::Result<VfLease> lease(const VfRequest& request);

  // Lends a function to a guest, from a request whose holder is not looked at: bound to vfio-pci,
  // set to its values, which are read back. Errors: the guest has one; none is free; a value that
  // the driver refuses, or that another function has; nothing is lent then.
  base::Result<VirtualFunction> lend_to_guest(const VfGuest& guest, VfRequest request);
  // Has it back as a lease, whose end resets it and restores what it was; until then nobody can
  // open it. Errors: there is no such guest; somebody, say who, has it open.
  base::Result<VfLease> take_from_guest(const std::string& name);
  // Lends no more what is not there any more; `warn` is told of each.
  void forget_lost_guests();
  [[nodiscard]] bool has_guests(const PciAddress& physical) const;
  // The wish with what guests' functions are set to in place of what it says of these.
  [[nodiscard]] PfWish with_guests(PfWish wish) const;
  // The wish without the values of guests' functions.
  [[nodiscard]] PfWish without_guests(PfWish wish) const;

  // Who has that function of ours, such as "uplink wan0" or "guest web0"; empty: nobody.
  [[nodiscard]] std::string holder_of(const PciAddress& physical, unsigned index) const;
  [[nodiscard]] std::size_t leased() const { return leases_.size(); }

 private:
  friend class VfLease;
  using Key = std::pair<PciAddress, unsigned>;
  struct Lent {
    std::string holder;
    PciAddress address;
    VfValues before;  // only what the holder changed
    std::optional<VfGuest> guest{};
  };
  struct Candidate {
    PciAddress physical;
    VirtualFunction function;
    bool far = false;      // not on the asked node
    std::size_t lent = 0;  // how many its physical function has lent
  };

  [[nodiscard]] std::vector<Candidate> candidates(const VfRequest& request, std::string& why) const;
  base::Result<void> prepare(const VirtualFunction& function);
  base::Result<void> set(const VfLease& lease, const Setting& setting);
  [[nodiscard]] base::Result<VfValues> values(const PciAddress& physical, unsigned index) const;
  [[nodiscard]] base::Result<void> check_address(const VfLease& lease,
                                                 const VfValues& wanted) const;
  base::Result<void> set_all(VfLease& lease, const VfValues& wanted);
  [[nodiscard]] base::Result<base::Fd> claim(const VirtualFunction& function) const;
  void keep();
  base::Result<void> write_down();
  void put_back(const PciAddress& physical, unsigned index, const VfValues& before);
  // Of a function that is gone: nothing to do. Any thread.
  base::Result<void> reset(const VfLease& lease) const;
  void take_back(const VfLease& lease);

  const Sysfs& sysfs_;
  Privileged& privileged_;
  Warn warn_;
  Keep keep_;
  std::vector<PciAddress> managed_;
  std::map<Key, Lent> leases_;  // to guests, too
};

}  // namespace millrace::sriov

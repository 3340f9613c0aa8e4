// Pfs: the physical functions of the configuration: brought to what it says at the start, kept so
// while the daemon runs, and their virtual functions lent from one pool.
//
// A function loses what it was given when its physical function is reset or its driver loaded anew.
// The kernel tells of every change of an interface (RTM_NEWLINK); we look then, and every half
// minute for what is not told, and apply what is not so any more. Whoever works against us is not
// fought at full speed: each time that it happens again soon, the next look comes later.
// Thread: control. Applying takes as long as the NIC's driver: milliseconds for a value, a second
// or more for functions that are made anew.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.hpp"
#include "daemon/config.hpp"
#include "sriov/applier.hpp"
#include "sriov/link_watch.hpp"
#include "sriov/system.hpp"
#include "sriov/vf_pool.hpp"

namespace millrace::daemon {

class Pfs {
 public:
  using Events = std::function<void(std::string_view event, const nlohmann::json& data)>;

  // `loop` must outlive it. Nothing is touched before start().
  Pfs(base::EventLoop& loop, Events events);
  Pfs(const Pfs&) = delete;
  Pfs& operator=(const Pfs&) = delete;

  // Restores what a daemon that was killed left of its settings, by the file that it kept (see
  // kept_functions.hpp), leaves to guests what they have by that file, and keeps it from then on:
  // `kept`. Applies the functions one after
  // the other and keeps them from then on; stops at the first failure, whose own changes are taken
  // back.
  base::Result<void> start(const std::vector<PfEntry>& entries, const std::string& kept);
  // Applies one anew, or all where `address` is nullopt. `all`: equal values, too, after a reset
  // that nobody was told of. Answers what was done: [{"pci", "done": [LINE...]}].
  base::Result<nlohmann::json> apply(const std::optional<sriov::PciAddress>& address, bool all);
  // For query-pfs: every one with its functions, as they are now.
  [[nodiscard]] nlohmann::json status() const;

  // Outlives every lease.
  [[nodiscard]] sriov::VfPool& pool() { return pool_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Unit {
    sriov::PfWish wish;
    std::string problem;        // why it is not as it should be; empty: it is
    std::uint64_t applied = 0;  // how often something had to be done
    Clock::duration pause{};    // from one look with something to do to the next
    Clock::time_point not_before{};
  };

  void restore(const std::string& kept);
  base::Result<void> start_all(const std::vector<PfEntry>& entries);
  base::Result<sriov::Applier::Done> apply(Unit& unit, sriov::Applier::Mode mode);
  void look();
  void look(Unit& unit);
  void mend(Unit& unit, const std::string& difference);
  [[nodiscard]] nlohmann::json status_of(const Unit& unit, const sriov::Holders& holders) const;

  base::EventLoop& loop_;
  Events events_;
  sriov::Sysfs sysfs_;
  sriov::System system_;
  sriov::Applier applier_;
  sriov::VfPool pool_;
  std::vector<Unit> units_;
  std::unique_ptr<sriov::LinkWatch> watch_;
  base::EventLoop::Timer beat_, again_;
};

}  // namespace millrace::daemon

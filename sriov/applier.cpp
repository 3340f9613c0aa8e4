#include "sriov/applier.hpp"

#include <unistd.h>

#include <algorithm>
#include <set>
#include <thread>

namespace millrace::sriov {

base::Result<Current> Applier::read(const PciAddress& address) const {
  auto function = read_physical_function(sysfs_, address);
  if (!function) return base::Unexpected{function.error()};
  Current out{*std::move(function), std::nullopt};
  if (out.function.netdev.empty()) return out;
  auto link = privileged_.link(out.function.netdev);
  if (!link) return base::Unexpected{link.error()};
  if (link->functions.size() != out.function.functions.size()) {
    return base::fail(out.function.netdev + " tells of " + std::to_string(link->functions.size()) +
                      " VFs and sysfs of " + std::to_string(out.function.functions.size()) +
                      ": they come or go right now; try again");
  }
  out.link = *std::move(link);
  return out;
}

base::Result<Applier::Done> Applier::apply(const PfWish& wish, Mode mode) {
  const auto name = "PF " + format(wish.address) + ": ";
  const auto before = read(wish.address);
  if (!before) return base::fail(name + before.error().message);
  if (auto possible = check_wish(*before, wish); !possible) {
    return base::fail(name + possible.error().message);
  }
  Work work;
  work.mode = mode;
  const auto changed = change(*before, wish, work);
  if (changed) return std::move(work.done);
  if (!work.touched) return base::fail(name + changed.error().message);
  return base::fail(name + changed.error().message + "; " + go_back(*before));
}

base::Result<void> Applier::change(const Current& before, const PfWish& wish, Work& work) {
  const bool rewrite = work.mode == Mode::rewrite;
  auto first = plan_functions(before, wish);
  if (rewrite && before.link && before.link->up) {
    first.insert(first.begin(), {SetUp{false}, SetUp{true}, Settle{}});
  }
  auto carried = carry_out(before, first, work);
  if (!carried) return carried;
  auto now = read(wish.address);
  if (!now) return base::Unexpected{now.error()};
  carried = carry_out(*now, plan_values(*now, wish, rewrite), work);
  if (!carried) return carried;
  if (work.done.empty()) return {};
  now = read(wish.address);
  if (!now) return base::Unexpected{now.error()};
  const auto wrong = difference(*now, wish);
  return wrong.empty() ? base::Result<void>{} : base::fail("set, but not so: " + wrong);
}

base::Result<void> Applier::carry_out(const Current& now, const Plan& plan, Work& work) {
  if (plan.empty()) return {};
  // looked up late: who came meanwhile is seen
  const auto holders = vfio_holders(sysfs_);
  Plan taking = plan;
  if (work.mode != Mode::change) {
    std::erase_if(taking, [](const Step& step) { return std::holds_alternative<SetValue>(step); });
  }
  auto free = check_free(now, taking, holders, ::getpid());
  if (!free) return free;
  const auto claims = claim(now, taking, holders);
  if (!claims) return base::Unexpected{claims.error()};
  work.touched = true;
  for (const auto& step : plan) {
    const auto result = carry_out(now, step, work);
    if (!result) return base::fail(format(step) + ": " + result.error().message);
    if (!std::holds_alternative<Settle>(step)) work.done.push_back(format(step));
  }
  return {};
}

// The groups of the functions that a plan takes away or changes stay ours until it is done. Nobody
// opens one between our look and our act: the kernel would wait for him, under a lock of the whole
// host's. And a holder that /proc does not show (other user, other PID namespace) is found, too.
base::Result<std::vector<base::Fd>> Applier::claim(const Current& now, const Plan& plan,
                                                   const Holders& holders) {
  std::vector<base::Fd> claims;
  std::set<unsigned> claimed;  // functions may share a group
  for (const auto& each : now.function.functions) {
    const bool touched =
        std::ranges::any_of(plan, [&each](const Step& step) { return touches(step, each.index); });
    const bool of_vfio = each.driver.find("vfio") != std::string::npos && each.group;
    if (!touched || !of_vfio || holders.contains(*each.group)) continue;  // our own, if any's
    if (!claimed.insert(*each.group).second) continue;
    auto claim = privileged_.claim_group(*each.group);
    if (!claim) {
      return base::fail(
          "VF " + std::to_string(each.index) + " (" + format(each.address) +
          ") is held by a process that cannot be seen from here: " + claim.error().message);
    }
    claims.push_back(*std::move(claim));
  }
  return claims;
}

base::Result<void> Applier::carry_out(const Current& now, const Step& step, Work& work) {
  const auto& function = now.function;
  if (const auto* up = std::get_if<SetUp>(&step)) {
    return privileged_.set_up(function.netdev, up->up);
  }
  if (const auto* autoprobe = std::get_if<SetAutoprobe>(&step)) {
    return privileged_.set_autoprobe(function.address, autoprobe->on);
  }
  if (const auto* count = std::get_if<SetCount>(&step)) {
    return privileged_.set_vf_count(function.address, count->count);
  }
  if (const auto* value = std::get_if<SetValue>(&step)) {
    return set(function.netdev, *value, work);
  }
  if (const auto* bind = std::get_if<Bind>(&step)) {
    return privileged_.bind(bind->function, bind->to);
  }
  settle(function.netdev, work);
  return {};
}

// A rate is compared with the link's speed, and a NIC that was reset just now has none for a while:
// longer than its driver needs to notice, so the carrier does not tell. (igb looks every 2 s.)
base::Result<void> Applier::set(const std::string& netdev, const SetValue& step, const Work& work) {
  for (;;) {
    auto done = privileged_.set(netdev, step.vf, step.to);
    const bool may_come = std::holds_alternative<Rate>(step.to) &&
                          std::chrono::steady_clock::now() < work.unsettled_until;
    if (done || !may_come) return done;
    std::this_thread::sleep_for(settings_.look_every);
  }
}

void Applier::settle(const std::string& netdev, Work& work) const {
  work.unsettled_until = std::chrono::steady_clock::now() + settings_.settle;
  if (work.no_link) return;
  const auto until = std::chrono::steady_clock::now() + settings_.settle;
  for (;;) {
    const auto link = privileged_.link(netdev);
    if (link && link->carrier) return;
    if (std::chrono::steady_clock::now() >= until) break;
    std::this_thread::sleep_for(settings_.look_every);
  }
  // no cable, perhaps: a driver that needs the link says so itself
  work.no_link = true;
  work.done.push_back("no link at " + netdev + " after " +
                      std::to_string(settings_.settle.count()) + " ms; going on without");
}

// Answers how it went, for the end of the line that says why.
std::string Applier::go_back(const Current& before) {
  const auto wish = wish_of(before);
  Work work;
  work.mode = Mode::restore;
  const auto now = read(wish.address);
  if (!now) return "and nothing could be brought back: " + now.error().message;
  const auto back = change(*now, wish, work);
  if (back) return "everything is as it was before";
  return "and not everything could be brought back: " + back.error().message;
}

}  // namespace millrace::sriov

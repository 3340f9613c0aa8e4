#include "sriov/plan.hpp"

#include <algorithm>

namespace millrace::sriov {

namespace {

std::string vf_name(unsigned index) {
  return "VF " + std::to_string(index);
}

std::string or_none(const std::string& driver) {
  return driver.empty() ? "no driver" : "driver " + driver;
}

const VfWish* wish_for(const PfWish& wish, unsigned index) {
  const auto found = std::ranges::find(wish.functions, index, &VfWish::index);
  return found == wish.functions.end() ? nullptr : &*found;
}

std::optional<std::string> wished_driver(const PfWish& wish, unsigned index) {
  const auto* function = wish_for(wish, index);
  return function != nullptr && function->driver ? function->driver : wish.driver;
}

unsigned count_of(const Current& now) {
  return static_cast<unsigned>(now.function.functions.size());
}

// The addresses that will be there, of the interface itself and of every function; a plan that ends
// with two alike is refused. An address of zeros is none.
base::Result<void> check_addresses(const Current& now, const PfWish& wish) {
  if (!now.link) return {};
  std::map<Mac, std::string> owners{{now.link->mac, "the PF itself"}};
  const unsigned count = wish.vfs.value_or(count_of(now));
  const bool made_anew = count != count_of(now);
  for (unsigned index = 0; index < count; ++index) {
    std::optional<Mac> mac;
    if (!made_anew && index < now.link->functions.size()) mac = now.link->functions[index].mac;
    const auto* function = wish_for(wish, index);
    if (function != nullptr && function->values.mac) mac = function->values.mac;
    if (!mac || *mac == Mac{}) continue;
    const auto [other, fresh] = owners.try_emplace(*mac, vf_name(index));
    if (!fresh) {
      return base::fail(vf_name(index) + ": MAC " + base::format_mac(*mac) +
                        " would be the one of " + other->second + ", too; give each its own");
    }
  }
  return {};
}

std::string described(const SetValue& step) {
  return vf_name(step.vf) + ": " + format(step.to) +
         (step.from && *step.from != step.to ? " (was " + format(*step.from) + ")" : "");
}

}  // namespace

std::string format(const Step& step) {
  if (const auto* up = std::get_if<SetUp>(&step)) {
    return up->up ? "interface up" : "interface down";
  }
  if (std::holds_alternative<Settle>(step)) return "wait for the link";
  if (const auto* autoprobe = std::get_if<SetAutoprobe>(&step)) {
    return autoprobe->on ? "autoprobe on" : "autoprobe off";
  }
  if (const auto* count = std::get_if<SetCount>(&step)) {
    return std::to_string(count->count) + " VFs";
  }
  if (const auto* value = std::get_if<SetValue>(&step)) return described(*value);
  const auto& bind = std::get<Bind>(step);
  return vf_name(bind.vf) + ": " + or_none(bind.to) + " (was " + or_none(bind.from) + ")";
}

base::Result<void> check_wish(const Current& now, const PfWish& wish) {
  const auto& function = now.function;
  const unsigned count = wish.vfs.value_or(count_of(now));
  if (count > function.vfs_max) {
    return base::fail("vfs = " + std::to_string(count) + " is more than the " +
                      std::to_string(function.vfs_max) + " VFs that it can have");
  }
  for (const auto& each : wish.functions) {
    if (each.index >= count) {
      const std::string how_many =
          count == 0 ? "no VFs" : "the VFs 0 to " + std::to_string(count - 1);
      return base::fail("there is no " + vf_name(each.index) + ": it has " + how_many +
                        (wish.vfs ? "" : "; say with vfs how many are to be made"));
    }
    if (!now.link && !each.values.list().empty()) {
      return base::fail(vf_name(each.index) +
                        ": its values cannot be set: the PF has no network "
                        "interface (" +
                        or_none(function.driver) + "); bind it to its network driver");
    }
  }
  return check_addresses(now, wish);
}

bool touches(const Step& step, unsigned vf) {
  if (const auto* value = std::get_if<SetValue>(&step)) return value->vf == vf;
  if (const auto* bind = std::get_if<Bind>(&step)) return bind->vf == vf;
  return std::holds_alternative<SetCount>(step);
}

Plan plan_functions(const Current& now, const PfWish& wish) {
  Plan plan;
  const unsigned is = count_of(now), shall = wish.vfs.value_or(is);
  std::optional<bool> autoprobe = wish.autoprobe;
  if (!autoprobe && shall != is && shall != 0) autoprobe = false;
  if (autoprobe && *autoprobe != now.function.autoprobe) plan.push_back(SetAutoprobe{*autoprobe});
  if (now.link && wish.up && !now.link->up) {
    plan.push_back(SetUp{true});
    plan.push_back(Settle{});
  }
  if (shall != is) {
    if (is != 0) plan.push_back(SetCount{0});
    if (shall != 0) plan.push_back(SetCount{shall});
    if (now.link && wish.up) plan.push_back(Settle{});
  }
  return plan;
}

Plan plan_values(const Current& now, const PfWish& wish, bool all) {
  Plan plan;
  for (const auto& function : now.function.functions) {
    const auto* wished = wish_for(wish, function.index);
    if (wished != nullptr && now.link) {
      const VfValues& values = now.link->functions[function.index];
      for (const auto& setting : wished->values.list()) {
        const auto is = values.same_kind(setting);
        if (all || is != setting) plan.push_back(SetValue{function.index, setting, is});
      }
    }
    const auto driver = wished_driver(wish, function.index);
    if (driver && *driver != function.driver) {
      plan.push_back(Bind{function.index, function.address, *driver, function.driver});
    }
  }
  if (now.link && now.link->up && !wish.up) plan.push_back(SetUp{false});
  return plan;
}

std::string use_of(const VirtualFunction& function, const Holders& holders, pid_t except) {
  if (function.group) {
    if (const auto found = holders.find(*function.group); found != holders.end()) {
      auto others = found->second;
      std::erase_if(others, [except](const Holder& each) { return each.pid == except; });
      if (!others.empty()) return format(others) + "; end it first";
    }
  }
  if (function.netdev_up) {
    return "the host's network: " + function.netdev + " is up; take it down first (ip link set " +
           function.netdev + " down)";
  }
  return {};
}

base::Result<void> check_free(const Current& now, const Plan& plan, const Holders& holders,
                              pid_t self) {
  const auto& functions = now.function.functions;
  const auto refuse = [&](const VirtualFunction& function, const Step& step, pid_t except) {
    const auto user = use_of(function, holders, except);
    if (user.empty()) return std::string{};
    return "cannot do: " + format(step) + ": " + vf_name(function.index) + " (" +
           format(function.address) + ") is held by " + user;
  };
  constexpr pid_t nobody = 0;
  for (const auto& step : plan) {
    // what is our own we may set, but not take away
    const pid_t except = std::holds_alternative<SetValue>(step) ? self : nobody;
    for (const auto& function : functions) {
      if (!touches(step, function.index)) continue;
      const auto line = refuse(function, step, except);
      if (!line.empty()) return base::fail(line);
    }
  }
  return {};
}

PfWish wish_of(const Current& before) {
  PfWish out;
  out.address = before.function.address;
  out.up = before.link && before.link->up;
  out.vfs = count_of(before);
  out.autoprobe = before.function.autoprobe;
  for (const auto& function : before.function.functions) {
    VfWish each{function.index, {}, function.driver};
    if (before.link) each.values = before.link->functions[function.index];
    out.functions.push_back(std::move(each));
  }
  return out;
}

std::string difference(const Current& now, const PfWish& wish) {
  if (wish.vfs && *wish.vfs != count_of(now)) {
    return "there are " + std::to_string(count_of(now)) + " VFs, wanted are " +
           std::to_string(*wish.vfs);
  }
  if (now.link && wish.up && !now.link->up) return "its interface is down";
  for (const auto& step : plan_values(now, wish, false)) {
    if (const auto* value = std::get_if<SetValue>(&step); value != nullptr && value->from) {
      return vf_name(value->vf) + ": wanted is " + format(value->to) + ", the driver says " +
             format(*value->from);
    }
    if (const auto* bind = std::get_if<Bind>(&step)) {
      return vf_name(bind->vf) + ": wanted is " + or_none(bind->to) + ", it has " +
             or_none(bind->from);
    }
  }
  return {};
}

}  // namespace millrace::sriov

// Functions that guests drive themselves: they are lent for longer than the pool may live.
#include <algorithm>

#include "sriov/plan.hpp"
#include "sriov/vf_pool.hpp"

namespace millrace::sriov {

// Two functions of one NIC with one address hear each other's frames, or none.
base::Result<void> VfPool::check_address(const VfLease& lease, const VfValues& wanted) const {
  if (!wanted.mac) return {};
  const auto function = read_physical_function(sysfs_, lease.physical());
  if (!function) return base::Unexpected{function.error()};
  for (const auto& each : function->functions) {
    if (each.index == lease.function().index) continue;
    const auto its = values(lease.physical(), each.index);
    if (its && its->mac == wanted.mac) {
      return base::fail("MAC " + base::format_mac(*wanted.mac) + " is the one of " +
                        name_of(lease.physical(), each.index) + " already; give each its own");
    }
  }
  return {};
}

base::Result<void> VfPool::set_all(VfLease& lease, const VfValues& wanted) {
  if (auto usable = check_address(lease, wanted); !usable) return usable;
  const auto settings = wanted.list();
  for (const auto& setting : settings) {
    if (auto done = lease.set(setting); !done) return done;
  }
  if (settings.empty()) return {};
  const auto now = lease.values();
  if (!now) return base::Unexpected{now.error()};
  for (const auto& setting : settings) {
    const auto is = now->same_kind(setting);
    if (!is || *is == setting) continue;  // a value that the driver does not tell is believed
    return base::fail(name_of(lease.physical(), lease.function().index) + ": " + format(setting) +
                      " was set, and the driver says " + format(*is));
  }
  return {};
}

base::Result<VirtualFunction> VfPool::lend_to_guest(const VfGuest& guest, VfRequest request) {
  for (const auto& [key, lent] : leases_) {
    if (!lent.guest || lent.guest->name != guest.name) continue;
    return base::fail("guest " + guest.name + " has " + name_of(key.first, key.second) + " (" +
                      format(lent.address) + ") already; give that back first");
  }
  request.holder = "guest " + guest.name;
  auto borrowed = lease(request);
  if (!borrowed) return base::Unexpected{borrowed.error()};
  auto& lent = leases_.at({borrowed->physical(), borrowed->function().index});
  auto done = set_all(*borrowed, guest.values);
  if (done) {
    lent.guest = guest;
    done = write_down();
  }
  if (!done) {
    lent.guest.reset();
    borrowed->was_not_used();
    return base::Unexpected{done.error()};
  }
  borrowed->pool_ = nullptr;  // it ends with take_from_guest()
  return borrowed->function();
}

// Nobody has it open, and nobody can while the descriptor lives.
base::Result<base::Fd> VfPool::claim(const VirtualFunction& function) const {
  if (const auto used = use_of(function, vfio_holders(sysfs_)); !used.empty()) {
    return base::fail("is held by " + used);
  }
  if (!function.group || function.driver.find("vfio") == std::string::npos) return base::Fd{};
  auto claimed = privileged_.claim_group(*function.group);
  if (claimed) return claimed;
  return base::fail("is held by a process that cannot be seen from here: " +
                    claimed.error().message);
}

base::Result<VfLease> VfPool::take_from_guest(const std::string& name) {
  const auto found = std::ranges::find_if(leases_, [&name](const auto& each) {
    return each.second.guest && each.second.guest->name == name;
  });
  if (found == leases_.end()) return base::fail("there is no function of a guest " + name);
  const auto& [key, lent] = *found;
  VirtualFunction function;
  function.index = key.second;
  function.address = lent.address;
  VfLease back{this, key.first, std::move(function)};
  // A function that is gone, or has another one in its place, is nobody's to hold.
  const auto there = read_virtual_function(sysfs_, key.first, key.second);
  if (there && there->address == lent.address) {
    auto claimed = claim(*there);
    if (!claimed) {
      back.pool_ = nullptr;
      return base::fail(name_of(key.first, key.second) + " (" + format(lent.address) +
                        ") of guest " + name + " " + claimed.error().message);
    }
    back.claim_ = *std::move(claimed);
    back.function_ = *there;
  }
  found->second.guest.reset();
  keep();
  return back;
}

void VfPool::forget_lost_guests() {
  const auto lost = std::erase_if(leases_, [this](const auto& each) {
    const auto& [key, lent] = each;
    if (!lent.guest) return false;
    const auto there = read_virtual_function(sysfs_, key.first, key.second);
    if (there && there->address == lent.address) return false;
    warn_(name_of(key.first, key.second) + " (" + format(lent.address) + ") of guest " +
          lent.guest->name + " is gone: the guest has none any more");
    return true;
  });
  if (lost != 0) keep();
}

bool VfPool::has_guests(const PciAddress& physical) const {
  return std::ranges::any_of(leases_, [&physical](const auto& each) {
    return each.first.first == physical && each.second.guest;
  });
}

PfWish VfPool::without_guests(PfWish wish) const {
  for (auto& each : wish.functions) {
    const auto lent = leases_.find({wish.address, each.index});
    if (lent != leases_.end() && lent->second.guest) each.values = {};
  }
  return wish;
}

PfWish VfPool::with_guests(PfWish wish) const {
  for (const auto& [key, lent] : leases_) {
    if (key.first != wish.address || !lent.guest) continue;
    const unsigned index = key.second;
    // One that is not there and will not be made cannot be set.
    const bool will_be =
        wish.vfs ? index < *wish.vfs : read_virtual_function(sysfs_, key.first, index).has_value();
    if (!will_be) continue;
    auto each = std::ranges::find(wish.functions, index, &VfWish::index);
    if (each == wish.functions.end()) {
      each = wish.functions.insert(wish.functions.end(), VfWish{.index = index});
    }
    for (const auto& setting : lent.guest->values.list()) each->values.set(setting);
  }
  return wish;
}

}  // namespace millrace::sriov

#include "sriov/vf_pool.hpp"

#include <algorithm>
#include <tuple>

#include "base/check.hpp"
#include "sriov/plan.hpp"

namespace millrace::sriov {

namespace {

constexpr const char* lent_driver = "vfio-pci";

}  // namespace

std::string name_of(const PciAddress& physical, unsigned index) {
  return "PF " + format(physical) + ": VF " + std::to_string(index);
}

// --- the lease ---

VfLease::VfLease(VfLease&& other) noexcept
    : pool_{std::exchange(other.pool_, nullptr)},
      physical_{other.physical_},
      function_{std::move(other.function_)},
      reset_{std::move(other.reset_)},
      claim_{std::move(other.claim_)} {}

VfLease& VfLease::operator=(VfLease&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(physical_, other.physical_);
  std::swap(function_, other.function_);
  std::swap(reset_, other.reset_);
  std::swap(claim_, other.claim_);
  return *this;
}

VfLease::~VfLease() {
  if (pool_ != nullptr) pool_->take_back(*this);
}

base::Result<void> VfLease::set(const Setting& setting) {
  CHECK(pool_ != nullptr);
  return pool_->set(*this, setting);
}

base::Result<VfValues> VfLease::values() const {
  CHECK(pool_ != nullptr);
  return pool_->values(physical_, function_.index);
}

void VfLease::reset() {
  CHECK(pool_ != nullptr);
  reset_ = pool_->reset(*this);
}

// --- the pool ---

VfPool::VfPool(const Sysfs& sysfs, Privileged& privileged, Warn warn)
    : sysfs_{sysfs}, privileged_{privileged}, warn_{std::move(warn)} {}

VfPool::~VfPool() {
  CHECK(
      std::ranges::all_of(leases_, [](const auto& each) { return each.second.guest.has_value(); }));
}

void VfPool::manage(const PciAddress& physical) {
  if (std::ranges::find(managed_, physical) == managed_.end()) managed_.push_back(physical);
}

std::string VfPool::holder_of(const PciAddress& physical, unsigned index) const {
  const auto found = leases_.find({physical, index});
  return found == leases_.end() ? std::string{} : found->second.holder;
}

std::vector<VfPool::Candidate> VfPool::candidates(const VfRequest& request,
                                                  std::string& why) const {
  const auto add = [&why](const std::string& reason) { why += (why.empty() ? "" : "; ") + reason; };
  const auto holders = vfio_holders(sysfs_);
  std::vector<Candidate> out;
  for (const auto& physical : managed_) {
    if (request.physical && *request.physical != physical) continue;
    const auto function = read_physical_function(sysfs_, physical);
    if (!function) {
      add(function.error().message);
      continue;
    }
    const auto lent = static_cast<std::size_t>(std::ranges::count_if(
        leases_, [&](const auto& each) { return each.first.first == physical; }));
    if (function->functions.empty()) add("PF " + format(physical) + " has no VFs");
    for (const auto& each : function->functions) {
      const auto name = name_of(physical, each.index);
      const auto used = use_of(each, holders);
      if (const auto holder = holder_of(physical, each.index); !holder.empty()) {
        add(name + " is lent to " + holder);
      } else if (!used.empty()) {
        add(name + " is held by " + used);
      } else {
        const bool far = request.node != base::any_node && each.node != base::any_node &&
                         each.node != request.node;
        out.push_back({physical, each, far, lent});
      }
    }
  }
  return out;
}

base::Result<void> VfPool::prepare(const VirtualFunction& function) {
  if (function.driver != lent_driver) {
    if (auto bound = privileged_.bind(function.address, lent_driver); !bound) return bound;
  }
  if (!function.group) {
    return base::fail(
        "it is in no IOMMU group; turn the IOMMU on (intel_iommu=on or amd_iommu=on "
        "on the kernel's command line)");
  }
  // somebody whom /proc does not show may have it
  const auto claim = privileged_.claim_group(*function.group);
  return claim ? base::Result<void>{} : base::Unexpected{claim.error()};
}

base::Result<VfLease> VfPool::lease(const VfRequest& request) {
  if (request.physical && std::ranges::find(managed_, *request.physical) == managed_.end()) {
    return base::fail("there is no [[pf]] with pci = \"" + format(*request.physical) +
                      "\"; add one, so that its VFs can be lent");
  }
  std::string why;
  auto free = candidates(request, why);
  std::ranges::sort(free, {}, [&request](const Candidate& each) {
    const bool last = each.function.address == request.last;
    return std::tuple{last, each.far, each.lent, each.physical, each.function.index};
  });
  for (auto& each : free) {
    const auto name = name_of(each.physical, each.function.index);
    if (auto ready = prepare(each.function); !ready) {
      why += (why.empty() ? "" : "; ") + name + ": " + ready.error().message;
      continue;
    }
    each.function.driver = lent_driver;
    leases_.emplace(Key{each.physical, each.function.index},
                    Lent{request.holder, each.function.address, {}});
    return VfLease{this, each.physical, std::move(each.function)};
  }
  return base::fail("no VF is free: " + (why.empty() ? "there is no [[pf]]" : why));
}

base::Result<VfValues> VfPool::values(const PciAddress& physical, unsigned index) const {
  const auto function = read_physical_function(sysfs_, physical);
  if (!function) return base::Unexpected{function.error()};
  if (function->netdev.empty()) {
    return base::fail("PF " + format(physical) + " has no network interface");
  }
  const auto link = privileged_.link(function->netdev);
  if (!link) return base::Unexpected{link.error()};
  if (index >= link->functions.size()) {
    return base::fail(name_of(physical, index) + " is gone");
  }
  return link->functions[index];
}

base::Result<void> VfPool::set(const VfLease& lease, const Setting& setting) {
  const unsigned index = lease.function().index;
  const auto name = name_of(lease.physical(), index) + ": " + format(setting) + ": ";
  const auto now = values(lease.physical(), index);
  if (!now) return base::fail(name + now.error().message);
  const auto before = now->same_kind(setting);
  if (before == setting) return {};
  const auto netdev = read_physical_function(sysfs_, lease.physical())->netdev;
  auto& lent = leases_.at({lease.physical(), index});
  const auto known = lent.before;
  if (before && !known.same_kind(setting)) lent.before.set(*before);
  if (lent.before != known) keep();
  if (auto made = privileged_.set(netdev, index, setting); !made) {
    lent.before = known;
    keep();
    return base::fail(name + made.error().message);
  }
  return {};
}

base::Result<void> VfPool::write_down() {
  if (!keep_) return {};
  std::vector<ChangedVf> changed;
  for (const auto& [key, lent] : leases_) {
    if (lent.before == VfValues{} && !lent.guest) continue;
    changed.push_back({key.first, key.second, lent.address, lent.before, lent.guest});
  }
  return keep_(changed);
}

void VfPool::keep() {
  if (const auto kept = write_down(); !kept) warn_(kept.error().message);
}

void VfPool::restore(const std::vector<ChangedVf>& changed) {
  const auto holders = vfio_holders(sysfs_);
  for (const auto& each : changed) {
    if (each.guest) {
      leases_.emplace(Key{each.physical, each.index},
                      Lent{"guest " + each.guest->name, each.function, each.before, each.guest});
      continue;
    }
    const auto name = name_of(each.physical, each.index);
    const auto there = read_virtual_function(sysfs_, each.physical, each.index);
    // Made anew meanwhile: it has no setting of ours.
    if (!there || there->address != each.function) continue;
    if (const auto used = use_of(*there, holders); !used.empty()) {
      warn_(name + ": has settings of a daemon that was killed, and is held by " + used);
    } else {
      put_back(each.physical, each.index, each.before);
    }
  }
  keep();
}

void VfPool::put_back(const PciAddress& physical, unsigned index, const VfValues& before) {
  const auto function = read_physical_function(sysfs_, physical);
  const auto now = values(physical, index);
  for (const auto& setting : before.list()) {
    if (now && now->same_kind(setting) == setting) continue;
    const auto back = function ? privileged_.set(function->netdev, index, setting)
                               : base::Result<void>{base::Unexpected{function.error()}};
    if (!back) {
      warn_(name_of(physical, index) + ": " + format(setting) +
            " not restored: " + back.error().message);
    }
  }
}

base::Result<void> VfPool::reset(const VfLease& lease) const {
  const auto& function = lease.function();
  // A physical function that was reset may have lost it, or have another one in its place.
  const auto there = read_virtual_function(sysfs_, lease.physical(), function.index);
  if (!there || there->address != function.address) return {};
  return privileged_.reset(function.address);
}

void VfPool::take_back(const VfLease& lease) {
  const Key key{lease.physical(), lease.function().index};
  const auto lent = leases_.find(key);
  CHECK(lent != leases_.end());
  const auto done = lease.reset_ ? *lease.reset_ : reset(lease);
  const auto there = read_virtual_function(sysfs_, key.first, key.second);
  if (there && there->address == lease.function().address) {
    if (!done) {
      warn_(name_of(key.first, key.second) +
            ": not reset when it was given back: " + done.error().message);
    }
    put_back(key.first, key.second, lent->second.before);
  }
  const bool changed = lent->second.before != VfValues{};
  leases_.erase(lent);
  if (changed) keep();
}

}  // namespace millrace::sriov

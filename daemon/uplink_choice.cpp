#include "daemon/uplink_choice.hpp"

#include <algorithm>

namespace millrace::daemon {

namespace {

const UplinkView* find(std::span<const UplinkView> uplinks, const std::string& name) {
  const auto found = std::ranges::find(uplinks, name, &UplinkView::name);
  return found == uplinks.end() ? nullptr : &*found;
}

// nullptr: neither has a device.
const UplinkView* choose_of(const UplinkView& first, const UplinkView& standby) {
  const bool first_up = first.usable && first.up, standby_up = standby.usable && standby.up;
  // It does not take over from a standby that works before its own link is calm.
  if (first_up && (first.carries || first.calm || !standby_up)) return &first;
  if (standby_up) return &standby;
  for (const auto* each : {&first, &standby}) {
    if (each->usable && each->carries) return each;
  }
  for (const auto* each : {&first, &standby}) {
    if (each->usable) return each;
  }
  return nullptr;
}

}  // namespace

std::set<std::string> choose_uplinks(std::span<const UplinkView> uplinks) {
  std::set<std::string> chosen, paired;
  for (const auto& first : uplinks) {
    const auto* standby = find(uplinks, first.standby);
    if (standby == nullptr || standby == &first) continue;
    paired.insert({first.name, standby->name});
    if (const auto* one = choose_of(first, *standby); one != nullptr) chosen.insert(one->name);
  }
  for (const auto& each : uplinks) {
    if (!each.usable || paired.contains(each.name)) continue;
    const auto* bond = find(uplinks, each.bond);
    if (each.bond.empty() || (bond != nullptr && bond->usable)) chosen.insert(each.name);
  }
  return chosen;
}

bool leads_out(std::span<const UplinkView> uplinks, const std::string& name) {
  const auto* first = find(uplinks, name);
  if (first == nullptr) return false;
  if (first->usable && first->up) return true;
  const auto* standby = find(uplinks, first->standby);
  return standby != nullptr && standby->usable && standby->up;
}

std::chrono::milliseconds pause_before(unsigned tries, std::chrono::milliseconds first,
                                       std::chrono::milliseconds most) {
  return std::min(most, first * (1u << std::min(tries, 10u)));
}

}  // namespace millrace::daemon

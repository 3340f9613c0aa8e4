#include "daemon/uplink_keeper.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "base/log.hpp"

namespace millrace::daemon {

namespace {

constexpr unsigned tries_most = 10;

bool has_device(const UplinkUnit& unit) {
  return unit.uplink != nullptr && unit.uplink->attached() && !unit.care.lost;
}

// The loop tells of it next. Until then: its registers may be gone already.
bool erred(const UplinkCare& care) {
  return care.error_watch && care.error_watch->heard();
}

bool is_kept(const UplinkUnit& unit) {
  return unit.state == UnitState::running && !unit.care.on_closed;
}

}  // namespace

UplinkKeeper::UplinkKeeper(base::EventLoop& loop, Units& units, Ties ties, const UplinkTimes& times)
    : loop_{loop}, units_{units}, ties_{std::move(ties)}, times_{times} {}

void UplinkKeeper::keep(UplinkUnit& unit) {
  unit.care.opened_at = unit.care.link_since = Clock::now();
  unit.care.link = unit.uplink->link();
  unit.care.lost = !unit.uplink->attached();
  if (unit.care.lost) unit.care.problem = "none of its members is there yet";
  if (!unit.care.lost) watch(unit);
  if (unit.bond != nullptr) begin_bond(*unit.bond);
  if (!beat_.active()) beat_ = loop_.every(times_.beat, [this] { look(); });
  ties_.changed();
  settle();
}

void UplinkKeeper::close(UplinkUnit& unit, std::function<void()> done) {
  unit.care.departure.reset();
  unit.care.errors.reset();
  unit.care.on_closed = std::move(done);
  settle();
}

// A member of it came: it is opened soon, with all that are there by then.
void UplinkKeeper::begin_bond(UplinkUnit& bond) {
  if (bond.uplink->attached()) return;
  const auto& members = bond.config.members;
  const bool all = std::ranges::all_of(members, [&](const std::string& name) {
    const auto found = units_.find(name);
    return found != units_.end() && is_kept(*found->second) && has_device(*found->second);
  });
  bond.care.try_at = Clock::now() + (all ? UplinkTimes::Time{0} : times_.members_come);
}

bool UplinkKeeper::any_member(const UplinkUnit& bond, bool with_device) const {
  return std::ranges::any_of(units_, [&](const auto& each) {
    const auto& unit = *each.second;
    return unit.bond == &bond && (!with_device || (is_kept(unit) && has_device(unit)));
  });
}

bool UplinkKeeper::leads_out(const std::string& name) const {
  return daemon::leads_out(views(), name);
}

bool UplinkKeeper::stands_alone(const UplinkEntry& entry) const {
  const auto& name = entry.uplink.name;
  return entry.standby.empty() && std::ranges::none_of(units_, [&](const auto& each) {
           const auto& other = each.second->config;
           return other.standby == name || std::ranges::count(other.members, name) != 0;
         });
}

std::vector<UplinkView> UplinkKeeper::views() const {
  std::vector<UplinkView> out;
  const auto now = Clock::now();
  for (const auto& [name, unit] : units_) {
    if (!is_kept(*unit)) continue;
    const auto& care = unit->care;
    out.push_back({.name = name,
                   .standby = unit->config.standby,
                   .bond = unit->bond == nullptr ? "" : unit->bond->config.uplink.name,
                   .usable = has_device(*unit),
                   .up = care.link.up,
                   .calm = now - care.link_since >= times_.calm_link,
                   .carries = unit->uplink->carries()});
  }
  return out;
}

// --- what is noticed ---

void UplinkKeeper::look() {
  const auto now = Clock::now();
  bool changed = false;
  for (auto& [name, unit] : units_) {
    if (!is_kept(*unit) || !has_device(*unit)) continue;
    changed |= replace_if_reset(*unit, now);
    ask(*unit);
  }
  if (changed) ties_.changed();
  settle();
}

void UplinkKeeper::ask(UplinkUnit& unit) {
  const auto& care = unit.care;
  if (care.lost || erred(care) || care.asker == nullptr || care.asked()) return;
  care.asker->run([this, &unit]() -> base::SideThread::Told {
    return [this, &unit, link = unit.uplink->link()] { hear(unit, link); };
  });
}

void UplinkKeeper::hear(UplinkUnit& unit, const vswitch::LinkState& link) {
  auto& care = unit.care;
  if (!is_kept(unit) || !has_device(unit) || erred(care) || link == care.link) return settle();
  const auto& uplink = unit.config.uplink;
  const bool turned = link.up != care.link.up;
  const bool elsewhere = turned || link.way != care.link.way;
  care.link = link;
  if (turned) care.link_since = Clock::now();
  care.flapped |= turned && !link.up;
  care.unannounced |= elsewhere && link.up && unit.uplink->carries();
  spdlog::info("uplink {}: the link of {} is {}{}", uplink.name, uplink.device,
               link.up ? "up" : "down", elsewhere && !turned ? ", by another member" : "");
  ties_.emit("UPLINK_LINK",
             {{"name", uplink.name}, {"up", link.up}, {"speed_mbps", link.speed_mbps}});
  if (turned) ties_.changed();
  settle();
}

bool UplinkKeeper::replace_if_reset(UplinkUnit& unit, Clock::time_point now) {
  if (!was_reset(unit, now)) return false;
  lose(unit, Loss::no_link,
       unit.care.link.up ? "had no link for a while, and needs a reset"
                         : "has no link while its physical function has one");
  return true;
}

// A reset of the physical function takes what its virtual ones were told, also where they have a
// link again afterwards.
bool UplinkKeeper::was_reset(const UplinkUnit& unit, Clock::time_point now) const {
  const auto& care = unit.care;
  const auto& uplink = unit.config.uplink;
  // One that is so however often it is opened is left alone: the host may have told it so.
  if (!uplink.pci || care.tries >= tries_most) return false;
  const bool long_ago = now - care.link_since >= times_.dead_link;
  const bool suspect = care.link.up ? care.flapped && !long_ago : long_ago && now >= care.try_at;
  return suspect && ties_.physical_has_link(uplink.device);
}

void UplinkKeeper::watch(UplinkUnit& unit) {
  auto& care = unit.care;
  const auto& uplink = unit.config.uplink;
  if (auto asker = base::SideThread::make(loop_, "uplink link")) {
    care.asker = *std::move(asker);
  } else {
    spdlog::warn("uplink {}: its link is not watched: {}", uplink.name, asker.error().message);
  }
  if (const int fd = unit.uplink->departure_fd(); fd >= 0) {
    auto watch = loop_.watch(fd, EPOLLIN, [this, &unit](std::uint32_t) {
      lose(unit, Loss::host, "the host wants it back");
    });
    if (watch) care.departure = *std::move(watch);
  }
  const auto group = unit.uplink->group();
  if (!group) return;
  auto errors = vfio::ErrorWatch::of(group->fd, group->number, uplink.device);
  if (!errors) {
    return spdlog::info("uplink {}: its errors are not heard of: {}", uplink.name,
                        errors.error().message);
  }
  care.error_watch.emplace(*std::move(errors));
  auto watch = loop_.watch(care.error_watch->fd(), EPOLLIN, [this, &unit](std::uint32_t) {
    lose(unit, Loss::error, "reported an error that it does not come back from by itself");
  });
  if (watch) care.errors = *std::move(watch);
}

// A function that the host took by name is the administrator's matter, unless there is somebody
// else to carry, or another function to be had.
bool UplinkKeeper::comes_back(const UplinkUnit& unit) const {
  return !unit.care.host_has_it || unit.config.pf || !stands_alone(unit.config);
}

void UplinkKeeper::lose(UplinkUnit& unit, Loss loss, const std::string& why) {
  auto& care = unit.care;
  if (care.lost || !is_kept(unit)) return;
  const auto uplink = unit.config.uplink;
  const auto now = Clock::now();
  care.departure.reset();
  care.errors.reset();
  care.lost = true;
  care.host_has_it = loss == Loss::host;
  care.try_at = loss == Loss::error ? now + times_.bus_reset : now;
  care.problem = uplink.device + ": " + why;
  ++care.losses;
  const auto worked_until = loss == Loss::no_link ? care.link_since : now;
  if (worked_until - care.opened_at >= times_.calm_device) care.tries = 0;
  care.link = {};
  care.link_since = now;
  const bool back = comes_back(unit);
  spdlog::warn("uplink {}: {}: it is released{}", uplink.name, care.problem,
               back ? ", and had again" : "; uplink-add takes it again");
  ties_.emit("UPLINK_LOST", {{"name", uplink.name}, {"device", uplink.device}, {"reason", why}});
  if (!back) return ties_.remove(uplink.name);
  if (!care.host_has_it && care.tries >= tries_most) fail(unit, care.problem);
  ties_.changed();
  settle();
}

// --- what is done ---

void UplinkKeeper::go_on() {
  busy_ = false;
  settle_later();
}

void UplinkKeeper::settle_later() {
  loop_.defer([this, alive = std::weak_ptr<bool>{alive_}] {
    if (!alive.expired()) settle();
  });
}

void UplinkKeeper::settle() {
  if (busy_) return;
  const auto chosen = choose_uplinks(views());
  // In this order: never two of a pair carry, and a close, which takes long, keeps nobody waiting.
  const bool begun = stop_one(chosen) || start_one(chosen) || announce_one() || close_one() ||
                     give_up_one() || bring_back_one();
  if (!begun && units_.empty()) beat_.reset();
}

bool UplinkKeeper::stop_one(const std::set<std::string>& chosen) {
  for (auto& [name, unit] : units_) {
    if (unit->state == UnitState::starting || chosen.contains(name)) continue;
    if (unit->uplink == nullptr || !unit->uplink->carries()) continue;
    if (changing_ == unit.get() || (changing_ != nullptr && unit->bond != nullptr)) continue;
    busy_ = true;
    // What was learned behind it is found elsewhere from now on; behind a bond's member nothing is.
    unit->uplink->carry(false, [this, port = unit->uplink->port()] {
      if (port == vswitch::no_port) return go_on();
      fabric_->flush_addresses(port, [this] { go_on(); });
    });
    return true;
  }
  return false;
}

bool UplinkKeeper::start_one(const std::set<std::string>& chosen) {
  for (const auto& name : chosen) {
    auto& unit = *units_.find(name)->second;
    if (unit.uplink->carries()) continue;
    if (changing_ != nullptr && unit.bond != nullptr) continue;
    busy_ = true;
    unit.uplink->carry(true, [this, &unit] { started(unit); });
    return true;
  }
  return false;
}

void UplinkKeeper::started(UplinkUnit& unit) {
  const auto& uplink = unit.config.uplink;
  if (unit.uplink->carries()) {
    spdlog::info("uplink {}: carries, on {}", uplink.name, uplink.device);
    ties_.emit("UPLINK_ACTIVE", {{"name", uplink.name}, {"device", uplink.device}});
    unit.care.unannounced = unit.bond == nullptr;
  } else {
    lose(*unit.bond, Loss::error, "its member " + uplink.name + " can less than it does");
  }
  go_on();
}

// Without a link nobody hears it: it is done when that comes.
bool UplinkKeeper::announce_one() {
  for (auto& [name, kept] : units_) {
    auto& unit = *kept;
    if (!unit.care.unannounced || !unit.care.link.up || !is_kept(unit)) continue;
    if (!unit.uplink->carries()) continue;
    busy_ = true;
    unit.care.unannounced = false;
    fabric_->list_addresses([this, &unit](const std::vector<vswitch::Fabric::Address>& addresses) {
      auto frames = std::make_shared<const std::vector<vswitch::Packet>>(
          announcements(addresses, unit.config.uplink, ties_.guests));
      unit.uplink->send(std::move(frames), [this] { go_on(); });
    });
    return true;
  }
  return false;
}

bool UplinkKeeper::close_one() {
  for (auto& [name, unit] : units_) {
    auto& care = unit->care;
    if (!care.on_closed) continue;
    if (erred(care)) care.error_watch->put_back_registers();
    if (changing_ != nullptr || care.asked() || any_member(*unit, false)) continue;
    begin_change(*unit, true);
    // The unit is destroyed by what it calls, or after that.
    auto closed = std::exchange(care.on_closed, {});
    unit->uplink->close([this, &unit = *unit, closed = std::move(closed)] {
      ties_.closed(unit, [this, closed] {
        end_change();
        closed();
      });
    });
    return true;
  }
  return false;
}

bool UplinkKeeper::give_up_one() {
  const auto now = Clock::now();
  for (auto& [name, unit] : units_) {
    auto& care = unit->care;
    if (!care.lost || !is_kept(*unit) || !unit->uplink->attached() || now < care.try_at) continue;
    // Its driver may be waiting for them just now, too.
    if (care.error_watch) care.error_watch->put_back_registers();
    if (changing_ != nullptr || care.asked()) continue;
    begin_change(*unit, true);
    unit->uplink->detach([this, &unit = *unit] {
      ties_.closed(unit, [this, &unit] {
        unit.care.try_at =
            Clock::now() + pause_before(unit.care.tries, times_.pause_first, times_.pause_most);
        end_change();
      });
    });
    return true;
  }
  return false;
}

bool UplinkKeeper::bring_back_one() {
  if (changing_ != nullptr) return false;
  const auto now = Clock::now();
  for (auto& [name, unit] : units_) {
    auto& care = unit->care;
    if (!care.lost || care.failed || !is_kept(*unit) || unit->uplink->attached()) continue;
    if (now < care.try_at) continue;
    const bool bond = !unit->config.members.empty();
    if (bond && !any_member(*unit, true)) continue;
    if (!care.host_has_it) ++care.tries;
    begin_change(*unit, false);
    ties_.open(*unit, [this, &unit = *unit](const base::Result<void>& opened) {
      // One that is to be closed by now is closed next.
      if (is_kept(unit)) opened ? is_back(unit) : not_back(unit, opened.error().message);
      end_change();
    });
    return true;
  }
  return false;
}

// Others go on beside it.
void UplinkKeeper::begin_change(UplinkUnit& unit, bool closes) {
  changing_ = &unit;
  unit.care.closing = closes;
  unit.care.asker.reset();
  unit.care.error_watch.reset();
  settle_later();
}

void UplinkKeeper::end_change() {
  changing_->care.closing = false;
  changing_ = nullptr;
  for (const auto& work : std::exchange(when_free_, {})) work();
  settle_later();
}

void UplinkKeeper::when_free(std::function<void()> work) {
  changing_ == nullptr ? work() : when_free_.push_back(std::move(work));
}

void UplinkKeeper::is_back(UplinkUnit& unit) {
  auto& care = unit.care;
  const auto& uplink = unit.config.uplink;
  care.lost = care.host_has_it = care.flapped = false;
  care.problem.clear();
  care.opened_at = care.link_since = Clock::now();
  care.try_at = care.opened_at + pause_before(care.tries, times_.pause_first, times_.pause_most);
  care.link = unit.uplink->link();
  watch(unit);
  if (care.losses != 0) {
    spdlog::info("uplink {}: has {} again", uplink.name, uplink.device);
    ties_.emit("UPLINK_RESTORED", {{"name", uplink.name}, {"device", uplink.device}});
  }
  if (unit.bond != nullptr) begin_bond(*unit.bond);
  ties_.changed();
}

void UplinkKeeper::not_back(UplinkUnit& unit, const std::string& why) {
  auto& care = unit.care;
  if (care.problem != why) {
    spdlog::warn("uplink {}: not back yet: {}", unit.config.uplink.name, why);
  }
  care.problem = why;
  const auto most = care.host_has_it ? times_.pause_for_host : times_.pause_most;
  care.try_at = Clock::now() + pause_before(care.tries, times_.pause_first, most);
  if (!care.host_has_it && care.tries >= tries_most) fail(unit, why);
}

void UplinkKeeper::fail(UplinkUnit& unit, const std::string& why) {
  const auto& name = unit.config.uplink.name;
  unit.care.failed = true;
  spdlog::error("uplink {}: given up after {} tries: {}; uplink-remove and uplink-add try anew",
                name, unit.care.tries, why);
  ties_.emit("UPLINK_FAILED", {{"name", name}, {"reason", why}});
}

}  // namespace millrace::daemon

#include "daemon/pfs.hpp"

#include <algorithm>

#include "base/log.hpp"
#include "base/mac.hpp"
#include "daemon/kept_functions.hpp"

namespace millrace::daemon {

namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Mode = sriov::Applier::Mode;

// A driver that comes up says many things at once.
constexpr auto calm = 300ms;
constexpr auto beat = 30s;
constexpr auto pause_first = 1s, pause_most = 60s;

// Leaves out what the driver does not tell.
void add_values(json& out, const sriov::VfValues& values) {
  if (values.mac) out["mac"] = base::format_mac(*values.mac);
  if (values.vlan) {
    out["vlan"] = values.vlan->id;
    out["qos"] = values.vlan->qos;
    out["vlan_protocol"] = values.vlan->service_tag ? "802.1ad" : "802.1Q";
  }
  if (values.rate) {
    out["min_rate"] = values.rate->min;
    out["max_rate"] = values.rate->max;
  }
  if (values.spoof_check) out["spoof_check"] = values.spoof_check->on;
  if (values.trust) out["trust"] = values.trust->on;
  if (!values.link) return;
  out["link"] = *values.link == sriov::LinkState::on    ? "on"
                : *values.link == sriov::LinkState::off ? "off"
                                                        : "auto";
}

json holders_of(const sriov::VirtualFunction& function, const sriov::Holders& holders) {
  auto out = json::array();
  const auto found = function.group ? holders.find(*function.group) : holders.end();
  if (found == holders.end()) return out;
  for (const auto& each : found->second) out.push_back({{"pid", each.pid}, {"name", each.name}});
  return out;
}

json node_of(int node) {
  return node == base::any_node ? json{} : json(node);
}

}  // namespace

Pfs::Pfs(base::EventLoop& loop, Events events)
    : loop_{loop},
      events_{std::move(events)},
      system_{sysfs_},
      applier_{sysfs_, system_, {}},
      pool_{sysfs_, system_, [](const std::string& line) { spdlog::warn("{}", line); }} {}

// Before they are applied: what the configuration says now counts. A file that is bad stays until
// something is changed.
void Pfs::restore(const std::string& kept) {
  const auto changed = take_kept_functions(kept);
  if (!changed) return spdlog::warn("{}", changed.error().message);
  for (const auto& each : *changed) {
    spdlog::info("PF {}: VF {}: {}", format(each.physical), each.index,
                 each.guest ? "guest " + each.guest->name + " has it"
                            : "a daemon that was killed had changed it");
  }
  if (!changed->empty()) pool_.restore(*changed);
}

// First what the configuration says, without the functions that guests have: nobody changes these
// below them. Then what was lost of theirs meanwhile, which keeps no daemon from starting: it is
// tried again at each look.
base::Result<void> Pfs::start_all(const std::vector<PfEntry>& entries) {
  for (const auto& entry : entries) {
    auto& unit = units_.emplace_back();
    unit.wish = entry.wish;
    auto done = apply(unit, Mode::change);
    if (!done) return base::Unexpected{done.error()};
    pool_.manage(unit.wish.address);
  }
  pool_.forget_lost_guests();
  for (auto& unit : units_) {
    if (!pool_.has_guests(unit.wish.address)) continue;
    if (auto done = apply(unit, Mode::restore); !done) spdlog::error("{}", done.error().message);
  }
  return {};
}

base::Result<void> Pfs::start(const std::vector<PfEntry>& entries, const std::string& kept) {
  pool_.keep_by([kept](const auto& changed) { return keep_functions(kept, changed); });
  restore(kept);
  if (auto started = start_all(entries); !started) return started;
  if (entries.empty()) return {};
  auto watch = sriov::LinkWatch::make(loop_, calm, [this] { look(); });
  if (!watch) return base::Unexpected{watch.error()};
  watch_ = *std::move(watch);
  beat_ = loop_.every(beat, [this] { look(); });
  return {};
}

base::Result<sriov::Applier::Done> Pfs::apply(Unit& unit, Mode mode) {
  auto done = applier_.apply(
      mode == Mode::change ? pool_.without_guests(unit.wish) : pool_.with_guests(unit.wish), mode);
  if (!done) {
    unit.problem = done.error().message;
    return done;
  }
  unit.problem.clear();
  const auto name = sriov::format(unit.wish.address);
  for (const auto& line : *done) spdlog::info("PF {}: {}", name, line);
  if (done->empty()) {
    spdlog::info("PF {}: as configured already", name);
  } else {
    ++unit.applied;
  }
  return done;
}

base::Result<json> Pfs::apply(const std::optional<sriov::PciAddress>& address, bool all) {
  auto out = json::array();
  bool found = false;
  for (auto& unit : units_) {
    if (address && unit.wish.address != *address) continue;
    found = true;
    const auto done = apply(unit, all ? Mode::rewrite : Mode::restore);
    if (!done) return base::Unexpected{done.error()};
    out.push_back({{"pci", sriov::format(unit.wish.address)}, {"done", *done}});
  }
  if (address && !found) {
    return base::fail("there is no [[pf]] with pci = \"" + sriov::format(*address) + "\"");
  }
  return out;
}

void Pfs::look() {
  for (auto& unit : units_) look(unit);
}

void Pfs::look(Unit& unit) {
  const auto now = applier_.read(unit.wish.address);
  const auto difference =
      now ? sriov::difference(*now, pool_.with_guests(unit.wish))
          : "PF " + sriov::format(unit.wish.address) + ": " + now.error().message;
  if (difference.empty()) {
    unit.problem.clear();
    return;
  }
  const auto time = Clock::now();
  if (time >= unit.not_before) {
    // what happens again long after is no fight
    unit.pause = time - unit.not_before > pause_most
                     ? Clock::duration{pause_first}
                     : std::min<Clock::duration>(2 * unit.pause, pause_most);
    mend(unit, difference);
    unit.not_before = Clock::now() + unit.pause;
    if (unit.problem.empty()) return;
  }
  // looks at all of them; who is not due yet asks for another
  again_ = loop_.after(std::max<Clock::duration>(unit.not_before - Clock::now(), calm),
                       [this] { look(); });
}

void Pfs::mend(Unit& unit, const std::string& difference) {
  const auto name = sriov::format(unit.wish.address);
  const auto problem_before = unit.problem;
  if (problem_before.empty()) {
    spdlog::warn("PF {}: not as configured any more: {}; applying it anew", name, difference);
  }
  const auto done = apply(unit, Mode::restore);
  if (done) {
    events_("PF_REAPPLIED", {{"pci", name}, {"reason", difference}, {"done", *done}});
  } else if (unit.problem != problem_before) {
    spdlog::error("{}", unit.problem);
    events_("PF_FAILED", {{"pci", name}, {"reason", unit.problem}});
  }
}

json Pfs::status() const {
  auto out = json::array();
  if (units_.empty()) return out;
  const auto holders = sriov::vfio_holders(sysfs_);
  for (const auto& unit : units_) out.push_back(status_of(unit, holders));
  return out;
}

json Pfs::status_of(const Unit& unit, const sriov::Holders& holders) const {
  const auto& address = unit.wish.address;
  json out{{"pci", sriov::format(address)},
           {"adopted", !unit.wish.vfs.has_value()},
           {"applied", unit.applied}};
  const auto now = applier_.read(address);
  auto problem = now ? sriov::difference(*now, pool_.with_guests(unit.wish)) : now.error().message;
  if (!problem.empty() && !unit.problem.empty()) problem = unit.problem;
  out["as_configured"] = problem.empty();
  out["problem"] = problem;
  out["vfs"] = json::array();
  if (!now) return out;
  const auto& function = now->function;
  out["driver"] = function.driver;
  out["interface"] = function.netdev;
  out["up"] = now->link && now->link->up;
  out["link"] = now->link && now->link->carrier;
  out["numa_node"] = node_of(function.node);
  out["vfs_max"] = function.vfs_max;
  out["autoprobe"] = function.autoprobe;
  for (const auto& each : function.functions) {
    json vf{{"index", each.index},
            {"pci", sriov::format(each.address)},
            {"driver", each.driver},
            {"interface", each.netdev},
            {"iommu_group", each.group ? json(*each.group) : json{}},
            {"numa_node", node_of(each.node)},
            {"lent_to", pool_.holder_of(address, each.index)},
            {"held_by", holders_of(each, holders)}};
    if (now->link) add_values(vf, now->link->functions[each.index]);
    out["vfs"].push_back(std::move(vf));
  }
  return out;
}

}  // namespace millrace::daemon

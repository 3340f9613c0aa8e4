#include "daemon/status.hpp"

#include <array>
#include <set>

#include "base/clock.hpp"
#include "base/hex.hpp"
#include "base/mac.hpp"
#include "daemon/version.hpp"

namespace millrace::daemon {

namespace {

using nlohmann::json;

// "waiting", "connecting", or the session's own word for where it stands.
std::string state_of(UnitState state, vhost::SocketMode mode, const vhost::SessionStatus& session) {
  if (state == UnitState::starting) return "starting";
  if (state == UnitState::stopping) return "stopping";
  if (session.connected) return session.phase;
  return mode == vhost::SocketMode::connect ? "connecting" : "waiting";
}

// The members that everything with a socket has.
template <class Unit>
json socket_side(const Unit& unit) {
  const auto& server = unit.config.server;
  vhost::SessionStatus session;
  if (unit.server != nullptr) session = unit.server->status();
  return {{"name", unit.config.device.name},
          {"socket", server.socket},
          {"mode", server.mode == vhost::SocketMode::listen ? "listen" : "connect"},
          {"state", state_of(unit.state, server.mode, session)},
          {"connected", session.connected},
          {"peer", session.connected ? json(session.peer) : json()},
          {"sessions", session.sessions}};
}

// The queues that a driver started.
json queues_of(const virtio::DeviceBase& device) {
  auto queues = json::array();
  for (unsigned i = 0; i < device.queues_max(); ++i) {
    const auto queue = device.queue_status(i);
    if (!queue.started) continue;
    queues.push_back(
        {{"index", i},
         {"enabled", queue.enabled},
         {"reactor", queue.reactor},
         {"pinned", queue.pinned},
         {"size", queue.size},
         {"format", queue.packed ? "packed" : "split"},
         {"chains", queue.chains},
         {"calls", queue.calls},
         {"calls_suppressed", queue.calls_suppressed},
         {"kicks_armed", queue.kicks_armed},
         {"fault",
          queue.fault == virtio::Fault::none ? json() : json(virtio::name_of(queue.fault))}});
  }
  return queues;
}

json switch_side(const vswitch::PortConfig& port) {
  return {{"vlan", port.access_vlan == 0 ? json() : json(port.access_vlan)},
          {"trunk", port.trunk},
          {"isolated", port.isolated},
          {"addresses_max", port.addresses_max}};
}

// A switch port's counters, summed over the reactors.
json port_counters(Topology& topology, vswitch::PortId port) {
  json sums = json::object();
  for (unsigned reactor = 0; reactor < topology.reactors().size(); ++reactor) {
    const auto& counters = topology.fabric().counters(port, reactor);
    vswitch::for_each_counter(counters, [&](const char* name, const base::Counter& counter) {
      sums[name] = sums.value(name, std::uint64_t{0}) + counter.get();
    });
  }
  return sums;
}

json disk_counters(const blk::Statistics& s) {
  return {{"read_requests", s.read_requests},
          {"read_bytes", s.read_bytes},
          {"write_requests", s.write_requests},
          {"write_bytes", s.write_bytes},
          {"flush_requests", s.flush_requests},
          {"discard_requests", s.discard_requests},
          {"zero_requests", s.zero_requests},
          {"io_errors", s.io_errors},
          {"unsupported", s.unsupported},
          {"in_flight", s.in_flight},
          {"bounced", s.bounced},
          {"buffered", s.buffered},
          {"pinned", s.pinned},
          {"polled", s.polled}};
}

// Percentiles since the start, and the buckets ([upper bound, count], empty ones left out) from
// which a reader computes those of an interval.
json latency_of(const base::Histogram::Snapshot& counts) {
  auto buckets = json::array();
  for (unsigned i = 0; i < counts.size(); ++i) {
    if (counts[i] != 0) {
      buckets.push_back(json::array({base::Histogram::lower_bound(i + 1) - 1, counts[i]}));
    }
  }
  return {{"p50", base::Histogram::quantile(counts, 0.5)},
          {"p99", base::Histogram::quantile(counts, 0.99)},
          {"p999", base::Histogram::quantile(counts, 0.999)},
          {"buckets", std::move(buckets)}};
}

// null where the front-end keeps the control queue to itself.
json driver_of(const net::Status& status) {
  if (!status.driver) return {};
  const auto& driver = *status.driver;
  return {{"receiving_pairs", driver.pairs},
          {"rss", driver.steered},
          {"hash_types", base::format_hex(driver.hash_types)},
          {"rx_usecs", driver.receive.microseconds},
          {"rx_frames", driver.receive.packets},
          {"tx_usecs", driver.transmit.microseconds},
          {"tx_frames", driver.transmit.packets}};
}

// How a direct port receives.
void add_direct(Topology& topology, const PortUnit& unit, json& port) {
  const auto found = topology.uplinks().find(unit.config.direct);
  const bool there = found != topology.uplinks().end() && found->second->uplink != nullptr;
  vswitch::UplinkStatus::Direct figures;
  std::uint64_t tagged = 0;
  if (there) {
    const auto status = found->second->uplink->status();
    figures = status.direct.value_or(figures);
    const auto vlan =
        vswitch::vlan_of_pair(unit.config.device.port, found->second->config.uplink.port);
    const bool by_switch = !vlan || (*vlan != 0 && !status.offloads.vlan_strip);
    tagged = figures.copied_vlan;
    if (by_switch && !status.queues.empty()) tagged += status.queues.front().received;
  }
  port["direct_rx"] = figures.placing ? "zero_copy" : "copying";
  auto& counters = port["counters"];
  counters["direct_rx_zero_copy"] = figures.packets;
  counters["direct_rx_zero_copy_bytes"] = figures.bytes;
  counters["direct_rx_copied_begun"] = figures.copied_begun;
  counters["direct_rx_copied_small"] = figures.copied_small;
  counters["direct_rx_copied_few"] = figures.copied_few;
  counters["direct_rx_copied_unmapped"] = figures.copied_unmapped;
  counters["direct_rx_copied_long"] = tagged != 0 ? 0 : figures.copied_long;
  counters["direct_rx_copied_vlan"] = tagged;
  counters["direct_rx_copied_off"] = figures.copied_off;
  counters["direct_rx_no_buffer"] = figures.no_buffer;
}

json port_status(Topology& topology, const PortUnit& unit) {
  const auto& config = unit.config.device;
  json port = socket_side(unit);
  port.update(switch_side(config.port));
  port["queues"] = config.pairs;
  port["mac"] = config.mac ? json(base::format_mac(*config.mac)) : json();
  port["mtu"] = config.mtu == 0 ? json() : json(config.mtu);
  port["follow_uplink"] =
      unit.config.follow_uplink.empty() ? json() : json(unit.config.follow_uplink);
  port["direct"] = unit.config.direct.empty() ? json() : json(unit.config.direct);
  // Of one that goes, the switch port may be gone already.
  if (unit.device == nullptr || unit.state == UnitState::stopping) return port;
  const auto status = unit.device->status();
  port["port_id"] = unit.device->port();
  // What the front-end said counts (NET_SET_MTU).
  if (status.mtu != 0) port["mtu"] = status.mtu;
  port["offloads"] = status.offloads;
  port["link_up"] = status.link_up;
  port["features"] = base::format_hex(unit.device->negotiated());
  port["driver"] = driver_of(status);
  port["counters"] = port_counters(topology, unit.device->port());
  if (!unit.config.direct.empty()) add_direct(topology, unit, port);
  port["virtqueues"] = queues_of(*unit.device);
  return port;
}

json disk_status(const DiskUnit& unit) {
  json disk = socket_side(unit);
  const auto backend = unit.device->backend_status();
  const auto statistics = unit.device->statistics();
  disk["queues"] = unit.config.device.queues;
  disk["bytes"] = backend.bytes;
  disk["readonly"] = backend.readonly;
  disk["backend"] = {{"kind", backend.kind},
                     {"path", backend.path.empty() ? json() : json(backend.path)},
                     {"direct", backend.direct},
                     {"io", backend.io},
                     {"ring", backend.ring},
                     {"pin",
                      {{"state", backend.pin.state},
                       {"bytes", backend.pin.bytes},
                       {"why", backend.pin.why.empty() ? json() : json(backend.pin.why)}}}};
  disk["features"] = base::format_hex(unit.device->negotiated());
  disk["counters"] = disk_counters(statistics);
  disk["latency_ns"] = latency_of(statistics.latency);
  disk["virtqueues"] = queues_of(*unit.device);
  return disk;
}

json console_ports(const guest::Device& device) {
  auto ports = json::array();
  for (const auto& port : device.ports()) {
    ports.push_back({{"name", port.settings.name},
                     {"socket", port.settings.socket},
                     {"terminal", port.settings.terminal},
                     {"id", port.id},
                     {"host_open", port.host_open},
                     {"guest_open", port.guest_open},
                     {"bytes_in", port.bytes_in},
                     {"bytes_out", port.bytes_out},
                     {"dropped_bytes", port.dropped}});
  }
  return ports;
}

json companion_status(const CompanionUnit& unit) {
  json companion = socket_side(unit);
  companion["kind"] = guest::kind_of(unit.config.device.settings);
  json counters = json::object();
  for (const auto& figure : unit.device->figures()) counters[figure.name] = figure.value;
  companion["counters"] = std::move(counters);
  if (std::holds_alternative<guest::ConsoleSettings>(unit.config.device.settings)) {
    companion["ports"] = console_ports(*unit.device);
  }
  companion["features"] = base::format_hex(unit.device->negotiated());
  companion["virtqueues"] = queues_of(*unit.device);
  return companion;
}

void add_zero_copy(const vswitch::UplinkStatus::ZeroCopy& figures, const UplinkUnit& unit,
                   json& uplink) {
  auto& counters = uplink["counters"];
  counters["tx_zero_copy_packets"] = figures.packets;
  counters["tx_zero_copy_bytes"] = figures.bytes;
  counters["tx_copied_small"] = figures.copied_small;
  counters["tx_copied_not_lent"] = figures.copied_not_lent;
  counters["tx_copied_unmapped"] = figures.copied_unmapped;
  counters["tx_copied_busy"] = figures.copied_busy;
  counters["tx_copied_slow"] = figures.copied_slow;
  auto& memory = uplink["memory"] = json::array();
  if (unit.memory == nullptr) return;  // it has no device
  for (const auto& region : unit.memory->status()) {
    memory.push_back({{"port", region.user},
                      {"guest_address", region.guest_address},
                      {"bytes", region.bytes},
                      {"iova", region.iova},
                      {"state", region.state}});
    if (!region.why.empty()) memory.back()["why"] = region.why;
  }
}

const char* name_of(vswitch::MirrorDirection direction) {
  if (direction == vswitch::MirrorDirection::both) return "both";
  return direction == vswitch::MirrorDirection::in ? "in" : "out";
}

const char* name_of(vswitch::BondMode mode) {
  return mode == vswitch::BondMode::active_backup ? "active-backup"
         : mode == vswitch::BondMode::balance_xor ? "balance-xor"
                                                  : "802.3ad";
}

// What a bond and its members say of each other.
void add_bond(Topology& topology, const UplinkUnit& unit, json& uplink) {
  if (unit.bond != nullptr) uplink["member_of"] = unit.bond->config.uplink.name;
  if (unit.config.members.empty()) return;
  uplink["bond"] = name_of(unit.config.uplink.bond);
  auto& members = uplink["members"] = json::array();
  for (const auto& name : unit.config.members) {
    json member{{"name", name}, {"link_up", false}, {"active", false}};
    const auto found = topology.uplinks().find(name);
    if (found != topology.uplinks().end() && found->second->state == UnitState::running) {
      const auto state = found->second->uplink->status().member.value_or(vswitch::MemberState{});
      member["link_up"] = found->second->care.link.up;
      member["active"] = state.active;
      if (state.partner) member["partner"] = base::format_mac(*state.partner);
    }
    members.push_back(std::move(member));
  }
}

// Whose work each is: the device's, our own, or nobody's.
json offloads_of(const vswitch::UplinkStatus::Offloads& device) {
  const auto whose = [](bool its, const char* other) { return its ? "device" : other; };
  return {{"checksum", whose(device.checksum, "software")},
          {"tso", whose(device.tso, "software")},
          {"vlan_insert", whose(device.vlan_insert, "software")},
          {"vlan_strip", whose(device.vlan_strip, "software")},
          {"vlan_filter", whose(device.vlan_filter, "none")},
          {"checksum_check", whose(device.checksum_check, "none")}};
}

json uplink_status(Topology& topology, const UplinkUnit& unit) {
  json uplink{{"name", unit.config.uplink.name}, {"device", unit.config.uplink.device}};
  if (unit.config.pf) uplink["pf"] = sriov::format(*unit.config.pf);
  uplink.update(switch_side(unit.config.uplink.port));
  const auto& care = unit.care;
  uplink["standby"] = unit.config.standby.empty() ? json() : json(unit.config.standby);
  uplink["vepa"] = unit.config.uplink.port.vepa;
  uplink["gro"] = unit.config.uplink.gro;
  add_bond(topology, unit, uplink);
  uplink["state"] = unit.state == UnitState::starting   ? "starting"
                    : unit.state == UnitState::stopping ? "stopping"
                    : care.failed                       ? "failed"
                    : care.closing                      ? "closing"
                    : care.lost                         ? "lost"
                                                        : "running";
  uplink["problem"] = care.problem.empty() ? json() : json(care.problem);
  uplink["losses"] = care.losses;
  // Of one that goes, device and switch port may be gone already.
  if (unit.uplink == nullptr || unit.state == UnitState::stopping) return uplink;
  const auto status = unit.uplink->status();
  uplink["driver"] = status.driver;
  uplink["link_up"] = care.link.up;
  uplink["speed_mbps"] = care.link.speed_mbps;
  uplink["carries"] = unit.uplink->carries();
  uplink["mtu"] = status.mtu;
  uplink["mac"] = base::format_mac(status.mac);
  uplink["reactor"] = status.queues.empty() ? json() : json(status.queues.front().reactor);
  auto& queues = uplink["queues"] = json::array();
  for (const auto& queue : status.queues) {
    queues.push_back({{"reactor", queue.reactor},
                      {"received", queue.received},
                      {"sent", queue.sent},
                      {"interrupts", queue.interrupts},
                      {"joined", queue.joined},
                      {"tagged", queue.tagged},
                      {"untagged", queue.untagged}});
  }
  if (!status.queues.empty()) uplink["offloads"] = offloads_of(status.offloads);
  json& driver = uplink["driver_counters"] = json::object();
  // One that is lost may not answer.
  if (!care.lost) {
    for (const auto& counter : unit.uplink->driver_counters()) driver[counter.name] = counter.value;
  }
  if (unit.bond != nullptr) return uplink;
  uplink["port_id"] = unit.uplink->port();
  uplink["counters"] = port_counters(topology, unit.uplink->port());
  if (status.zero_copy) add_zero_copy(*status.zero_copy, unit, uplink);
  return uplink;
}

// The started queues that a reactor owns, with their share of its time.
json queues_on(const std::vector<QueueLoad>& queues, unsigned reactor) {
  auto out = json::array();
  for (const auto& queue : queues) {
    if (queue.reactor != reactor) continue;
    out.push_back({{"kind", queue.kind},
                   {"name", queue.unit},
                   {"queue", queue.queue},
                   {"load", queue.load},
                   {"pinned", queue.pinned}});
  }
  return out;
}

json reactor_status(base::Reactor& reactor) {
  const auto& counters = reactor.counters();
  const auto start = counters.cycles_start.get();
  return {{"index", reactor.index()},
          {"core", reactor.config().core},
          {"mode", reactor.config().mode == base::IdleMode::poll ? "poll" : "adaptive"},
          {"cycles", start == 0 ? 0 : base::cycles() - start},
          {"busy_cycles", counters.busy_cycles.get()},
          {"cycles_per_second", base::cycles_per_second()},
          {"rounds", counters.rounds.get()},
          {"busy_rounds", counters.busy_rounds.get()},
          {"sleeps", counters.sleeps.get()},
          {"commands", counters.commands.get()},
          {"longest_round_ns", base::cycles_to_ns(counters.longest_round_cycles.get())},
          {"calls_sent", reactor.calls().sent.get()},
          {"calls_refused", reactor.calls().refused.get()}};
}

template <class Unit>
void append_sessions(const Topology::Units<Unit>& units, const char* kind, json& out) {
  for (const auto& [name, unit] : units) {
    if (unit->server == nullptr) continue;
    if constexpr (std::is_same_v<Unit, CompanionUnit>) {
      kind = guest::kind_of(unit->config.device.settings);
    }
    const auto session = unit->server->status();
    out.push_back({{"kind", kind},
                   {"name", name},
                   {"connected", session.connected},
                   {"peer", session.connected ? json(session.peer) : json()},
                   {"phase", session.connected ? json(session.phase) : json()},
                   {"sessions", session.sessions},
                   {"messages", session.messages},
                   {"refused", session.refused},
                   {"virtio_features", base::format_hex(session.virtio_features)},
                   {"protocol_features", base::format_hex(session.protocol_features)},
                   {"memory_regions", session.memory_regions},
                   {"memory_bytes", session.memory_bytes},
                   {"last_error", session.last_error.empty() ? json() : json(session.last_error)}});
  }
}

// {NAME: counters} from a list of units.
json counters_by_name(const json& units) {
  json out = json::object();
  for (const auto& unit : units) {
    out[unit["name"].get<std::string>()] = unit.value("counters", json::object());
  }
  return out;
}

}  // namespace

json status_of(Topology& topology) {
  std::size_t connected = 0;
  for (const auto& session : sessions_of(topology)) connected += session["connected"] ? 1 : 0;
  const auto uptime = base::monotonic_ns() - topology.started_ns();
  return {{"version", version},
          {"state", "running"},
          {"pid", ::getpid()},
          {"uptime_s", static_cast<double>(uptime) / 1e9},
          {"reactors", topology.reactors().size()},
          {"ports", topology.ports().size()},
          {"disks", topology.disks().size()},
          {"companions", topology.companions().size()},
          {"uplinks", topology.uplinks().size()},
          {"connected", connected},
          {"io", topology.rings().describe()}};
}

json ports_of(Topology& topology) {
  auto ports = json::array();
  for (const auto& [name, unit] : topology.ports()) ports.push_back(port_status(topology, *unit));
  return ports;
}

json disks_of(Topology& topology) {
  auto disks = json::array();
  for (const auto& [name, unit] : topology.disks()) disks.push_back(disk_status(*unit));
  return disks;
}

json companions_of(Topology& topology) {
  auto companions = json::array();
  for (const auto& [name, unit] : topology.companions()) {
    companions.push_back(companion_status(*unit));
  }
  return companions;
}

json uplinks_of(Topology& topology) {
  auto uplinks = json::array();
  for (const auto& [name, unit] : topology.uplinks()) {
    uplinks.push_back(uplink_status(topology, *unit));
  }
  return uplinks;
}

json mirrors_of(Topology& topology) {
  auto mirrors = json::array();
  for (const auto& [name, unit] : topology.mirrors()) {
    const auto figures = topology.fabric().mirror_figures(unit.to);
    mirrors.push_back(
        {{"name", name},
         {"from", unit.config.from},
         {"to", unit.config.to},
         {"direction", name_of(unit.config.direction)},
         {"counters",
          {{"frames", figures.frames}, {"bytes", figures.bytes}, {"dropped", figures.dropped}}}});
  }
  return mirrors;
}

json reactors_of(Topology& topology) {
  auto reactors = json::array();
  const auto queues = topology.queues();
  for (unsigned i = 0; i < topology.reactors().size(); ++i) {
    auto reactor = reactor_status(topology.reactors().at(i));
    reactor["load"] = topology.reactors().load(i);
    reactor["queues"] = queues_on(queues, i);
    reactors.push_back(std::move(reactor));
  }
  return reactors;
}

json sessions_of(Topology& topology) {
  auto sessions = json::array();
  append_sessions(topology.ports(), "port", sessions);
  append_sessions(topology.disks(), "disk", sessions);
  append_sessions(topology.companions(), "", sessions);
  return sessions;
}

json counters_of(Topology& topology) {
  return {{"time_ns", base::monotonic_ns()},
          {"ports", counters_by_name(ports_of(topology))},
          {"disks", counters_by_name(disks_of(topology))},
          {"companions", counters_by_name(companions_of(topology))},
          {"uplinks", counters_by_name(uplinks_of(topology))},
          {"mirrors", counters_by_name(mirrors_of(topology))},
          {"reactors", reactors_of(topology)}};
}

json everything_of(Topology& topology) {
  return {{"time_ns", base::monotonic_ns()},       {"status", status_of(topology)},
          {"ports", ports_of(topology)},           {"disks", disks_of(topology)},
          {"companions", companions_of(topology)}, {"uplinks", uplinks_of(topology)},
          {"mirrors", mirrors_of(topology)},       {"reactors", reactors_of(topology)}};
}

}  // namespace millrace::daemon

#include "daemon/ctl/rates.hpp"

#include <algorithm>
#include <map>

#include "daemon/ctl/table.hpp"

namespace millrace::ctl {

namespace {

using nlohmann::json;

const json nothing;

std::uint64_t counter(const json& unit, const std::string& name) {
  if (!unit.is_object() || !unit.contains("counters")) return 0;
  return unit["counters"].value(name, std::uint64_t{0});
}

// How much a counter grew; a unit that is new, or was made anew, grew by nothing we can tell.
std::uint64_t grown(const json& before, const json& after, const std::string& name) {
  if (before.is_null()) return 0;
  const auto first = counter(before, name), second = counter(after, name);
  return second > first ? second - first : 0;
}

std::uint64_t quantile(const std::map<std::uint64_t, std::uint64_t>& buckets, double q) {
  std::uint64_t total = 0, seen = 0;
  for (const auto& [upper, count] : buckets) total += count;
  for (const auto& [upper, count] : buckets) {
    seen += count;
    if (static_cast<double>(seen) >= q * static_cast<double>(total)) return upper;
  }
  return 0;
}

// The latency histogram of the interval: upper bound -> count.
std::map<std::uint64_t, std::uint64_t> interval_buckets(const json& before, const json& after) {
  std::map<std::uint64_t, std::uint64_t> buckets;
  if (before.is_null() || !after.contains("latency_ns")) return buckets;
  for (const auto& bucket : after["latency_ns"]["buckets"]) buckets[bucket[0]] = bucket[1];
  if (!before.contains("latency_ns")) return buckets;
  for (const auto& bucket : before["latency_ns"]["buckets"]) {
    auto& count = buckets[bucket[0]];
    count -= std::min(count, bucket[1].get<std::uint64_t>());
  }
  std::erase_if(buckets, [](const auto& bucket) { return bucket.second == 0; });
  return buckets;
}

}  // namespace

double seconds_between(const json& before, const json& after) {
  const auto first = before.value("time_ns", std::uint64_t{0});
  const auto second = after.value("time_ns", std::uint64_t{0});
  return std::max(second > first ? static_cast<double>(second - first) / 1e9 : 0, 1e-6);
}

const json& unit_named(const json& units, const std::string& name) {
  for (const auto& unit : units) {
    if (unit.value("name", std::string{}) == name) return unit;
  }
  return nothing;
}

PortRates port_rates(const json& before, const json& after, double seconds) {
  const auto rate = [&](const char* name) {
    return static_cast<double>(grown(before, after, name)) / seconds;
  };
  PortRates rates;
  rates.rx_packets = rate("rx_packets");
  rates.rx_bits = 8 * rate("rx_bytes");
  rates.tx_packets = rate("tx_packets");
  rates.tx_bits = 8 * rate("tx_bytes");
  if (!after.contains("counters")) return rates;
  constexpr std::string_view prefix = "drop_";
  for (const auto& [name, value] : after["counters"].items()) {
    if (!name.starts_with(prefix)) continue;
    const double drops = rate(name.c_str());
    if (drops == 0) continue;
    rates.drops += drops;
    rates.drop_reasons += (rates.drop_reasons.empty() ? "" : ", ") + name.substr(prefix.size()) +
                          " " + short_number(drops);
  }
  return rates;
}

DiskRates disk_rates(const json& before, const json& after, double seconds) {
  const auto rate = [&](const char* name) {
    return static_cast<double>(grown(before, after, name)) / seconds;
  };
  DiskRates rates;
  rates.reads = rate("read_requests");
  rates.writes = rate("write_requests");
  rates.requests = rates.reads + rates.writes + rate("flush_requests") + rate("discard_requests") +
                   rate("zero_requests");
  rates.bytes = rate("read_bytes") + rate("write_bytes");
  const auto buckets = interval_buckets(before, after);
  rates.p50_ns = quantile(buckets, 0.5);
  rates.p99_ns = quantile(buckets, 0.99);
  rates.p999_ns = quantile(buckets, 0.999);
  rates.in_flight = counter(after, "in_flight");
  rates.errors = counter(after, "io_errors");
  return rates;
}

ReactorRates reactor_rates(const json& before, const json& after) {
  const auto delta = [&](const char* name) {
    const auto first = before.is_null() ? 0.0 : before.value(name, 0.0);
    return std::max(after.value(name, 0.0) - first, 0.0);
  };
  ReactorRates rates;
  const double cycles = delta("cycles"), busy = delta("busy_cycles");
  if (cycles > 0) rates.busy = std::min(busy / cycles, 1.0);
  if (const double rounds = delta("busy_rounds"); rounds > 0)
    rates.cycles_per_round = busy / rounds;
  return rates;
}

json rates_as_json(const json& before, const json& after) {
  const double seconds = seconds_between(before, after);
  json out{{"interval_s", seconds},
           {"ports", json::object()},
           {"disks", json::object()},
           {"uplinks", json::object()},
           {"reactors", json::array()}};
  for (const char* kind : {"ports", "uplinks"}) {
    for (const auto& unit : after[kind]) {
      const std::string name = unit["name"];
      const auto rates = port_rates(unit_named(before[kind], name), unit, seconds);
      out[kind][name] = {{"rx_packets_s", rates.rx_packets}, {"rx_bits_s", rates.rx_bits},
                         {"tx_packets_s", rates.tx_packets}, {"tx_bits_s", rates.tx_bits},
                         {"drops_s", rates.drops},           {"drop_reasons", rates.drop_reasons}};
    }
  }
  for (const auto& unit : after["disks"]) {
    const std::string name = unit["name"];
    const auto rates = disk_rates(unit_named(before["disks"], name), unit, seconds);
    out["disks"][name] = {{"requests_s", rates.requests}, {"bytes_s", rates.bytes},
                          {"p50_ns", rates.p50_ns},       {"p99_ns", rates.p99_ns},
                          {"p999_ns", rates.p999_ns},     {"in_flight", rates.in_flight},
                          {"errors", rates.errors}};
  }
  for (std::size_t i = 0; i < after["reactors"].size(); ++i) {
    const auto& first = i < before["reactors"].size() ? before["reactors"][i] : nothing;
    const auto rates = reactor_rates(first, after["reactors"][i]);
    out["reactors"].push_back(
        {{"index", i}, {"busy", rates.busy}, {"cycles_per_busy_round", rates.cycles_per_round}});
  }
  return out;
}

}  // namespace millrace::ctl

#include "daemon/metrics.hpp"

#include <string_view>

namespace millrace::daemon {

namespace {

using nlohmann::json;

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string name_of(const json& unit) {
  const auto& key = unit.contains("name") ? unit["name"] : unit["index"];
  return key.is_string() ? key.get<std::string>() : key.dump();
}

std::string number(const json& value) {
  if (value.is_boolean()) return value.get<bool>() ? "1" : "0";
  return value.dump();
}

// One metric family: a sample for each unit. `value` picks the number out of a unit; null: none.
template <class Pick>
void family(std::string& out, const json& units, const char* kind, const std::string& metric,
            const char* type, Pick pick) {
  std::string samples;
  for (const auto& unit : units) {
    const json value = pick(unit);
    if (value.is_null()) continue;
    samples += metric + "{" + kind + "=\"" + escaped(name_of(unit)) + "\"} " + number(value) + "\n";
  }
  if (!samples.empty()) out += "# TYPE " + metric + " " + type + "\n" + samples;
}

bool is_gauge(const std::string& counter) {
  // How things stand, and what a guest says of itself.
  return counter == "in_flight" || counter == "ports" || counter == "ports_open" ||
         counter == "target_bytes" || counter == "actual_bytes" || counter.starts_with("guest_");
}

// Every counter of every unit of a kind: millrace_port_rx_packets_total{port="web0"} 12.
void counters(std::string& out, const json& units, const std::string& kind) {
  json names = json::object();
  for (const auto& unit : units) {
    const auto found = unit.find("counters");
    if (found == unit.end()) continue;
    for (const auto& [name, value] : found->items()) names[name] = true;
  }
  for (const auto& [name, unused] : names.items()) {
    const bool gauge = is_gauge(name);
    const std::string metric = "millrace_" + kind + "_" + name + (gauge ? "" : "_total");
    family(out, units, kind.c_str(), metric, gauge ? "gauge" : "counter", [&](const json& unit) {
      return unit.contains("counters") ? unit["counters"].value(name, json{}) : json{};
    });
  }
}

void gauge(std::string& out, const json& units, const std::string& kind, const std::string& key) {
  family(out, units, kind.c_str(), "millrace_" + kind + "_" + key, "gauge",
         [&](const json& unit) { return unit.value(key, json{}); });
}

// What an uplink's device does by itself: 1, and what is left to software, or to nobody: 0.
void offloads(std::string& out, const json& uplinks) {
  constexpr const char* metric = "millrace_uplink_offload";
  std::string samples;
  for (const auto& uplink : uplinks) {
    const auto all = uplink.value("offloads", json::object());
    for (const auto& [name, whose] : all.items()) {
      samples += std::string{metric} + "{uplink=\"" + escaped(name_of(uplink)) + "\",offload=\"" +
                 escaped(name) + "\"} " + (whose == "device" ? "1" : "0") + "\n";
    }
  }
  if (!samples.empty()) out += std::string{"# TYPE "} + metric + " gauge\n" + samples;
}

// A summary's quantiles in seconds.
void latency(std::string& out, const json& disks) {
  constexpr const char* metric = "millrace_disk_latency_seconds";
  std::string samples;
  for (const auto& disk : disks) {
    const auto found = disk.find("latency_ns");
    if (found == disk.end()) continue;
    for (const auto& [key, quantile] :
         {std::pair{"p50", "0.5"}, {"p99", "0.99"}, {"p999", "0.999"}}) {
      const double seconds = found->value(key, 0.0) / 1e9;
      samples += std::string{metric} + "{disk=\"" + escaped(name_of(disk)) + "\",quantile=\"" +
                 quantile + "\"} " + json(seconds).dump() + "\n";
    }
  }
  if (!samples.empty()) out += std::string{"# TYPE "} + metric + " summary\n" + samples;
}

void reactors(std::string& out, const json& units) {
  for (const char* key : {"rounds", "busy_rounds", "busy_cycles", "sleeps", "commands",
                          "calls_sent", "calls_refused"}) {
    family(out, units, "reactor", std::string{"millrace_reactor_"} + key + "_total", "counter",
           [&](const json& unit) { return unit.value(key, json{}); });
  }
}

}  // namespace

std::string metrics_of(const json& everything) {
  std::string out;
  const auto& status = everything["status"];
  out += "# TYPE millrace_info gauge\nmillrace_info{version=\"" +
         escaped(status["version"].get<std::string>()) + "\"} 1\n";
  out += "# TYPE millrace_uptime_seconds gauge\nmillrace_uptime_seconds " +
         status["uptime_s"].dump() + "\n";
  reactors(out, everything["reactors"]);
  gauge(out, everything["reactors"], "reactor", "load");
  gauge(out, everything["ports"], "port", "connected");
  gauge(out, everything["disks"], "disk", "connected");
  gauge(out, everything["disks"], "disk", "bytes");
  const auto companions = everything.value("companions", json::array());
  gauge(out, companions, "companion", "connected");
  gauge(out, everything["uplinks"], "uplink", "link_up");
  offloads(out, everything["uplinks"]);
  counters(out, everything["ports"], "port");
  counters(out, everything["disks"], "disk");
  counters(out, companions, "companion");
  counters(out, everything["uplinks"], "uplink");
  counters(out, everything.value("mirrors", json::array()), "mirror");
  latency(out, everything["disks"]);
  return out;
}

}  // namespace millrace::daemon

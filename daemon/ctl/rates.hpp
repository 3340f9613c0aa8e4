// Rates: what happened between two samples of query-all. Pure functions over JSON.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace millrace::ctl {

// Per second, from the guest's or the wire's view. drops: by name, only those that grew.
struct PortRates {
  double rx_packets = 0, rx_bits = 0, tx_packets = 0, tx_bits = 0, drops = 0;
  std::string drop_reasons;  // "ring_full 1.2k, vlan 3"; empty: none
};

struct DiskRates {
  double requests = 0, bytes = 0, reads = 0, writes = 0;
  std::uint64_t p50_ns = 0, p99_ns = 0, p999_ns = 0;  // of the interval; 0: no request in it
  std::uint64_t in_flight = 0, errors = 0;            // now, and since the start
};

struct ReactorRates {
  double busy = 0;              // share of the time, 0 to 1
  double cycles_per_round = 0;  // of rounds that found work
};

// Seconds between two samples; at least a microsecond.
[[nodiscard]] double seconds_between(const nlohmann::json& before, const nlohmann::json& after);

// `before` is null where the unit was not there at the first sample: its rates are 0.
[[nodiscard]] PortRates port_rates(const nlohmann::json& before, const nlohmann::json& after,
                                   double seconds);
[[nodiscard]] DiskRates disk_rates(const nlohmann::json& before, const nlohmann::json& after,
                                   double seconds);
[[nodiscard]] ReactorRates reactor_rates(const nlohmann::json& before, const nlohmann::json& after);

// The unit of this name in a list of units; null where there is none.
[[nodiscard]] const nlohmann::json& unit_named(const nlohmann::json& units,
                                               const std::string& name);

// {"interval_s", "ports": {NAME: {...}}, "disks": ..., "uplinks": ..., "reactors": [...]}
[[nodiscard]] nlohmann::json rates_as_json(const nlohmann::json& before,
                                           const nlohmann::json& after);

}  // namespace millrace::ctl

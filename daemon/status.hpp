// Status: what the running daemon says about itself, as JSON. Every reply is a snapshot of counters
// that only grow (from the start of the unit); rates are the reader's to compute. Thread: control.
#pragma once

#include <nlohmann/json.hpp>

#include "daemon/topology.hpp"

namespace millrace::daemon {

[[nodiscard]] nlohmann::json status_of(Topology& topology);
[[nodiscard]] nlohmann::json ports_of(Topology& topology);
[[nodiscard]] nlohmann::json disks_of(Topology& topology);
[[nodiscard]] nlohmann::json companions_of(Topology& topology);
[[nodiscard]] nlohmann::json uplinks_of(Topology& topology);
[[nodiscard]] nlohmann::json mirrors_of(Topology& topology);
[[nodiscard]] nlohmann::json reactors_of(Topology& topology);
[[nodiscard]] nlohmann::json sessions_of(Topology& topology);
// {"time_ns", "ports": {NAME: {COUNTER: VALUE}}, "disks": ..., "uplinks": ..., "reactors": [...]}
[[nodiscard]] nlohmann::json counters_of(Topology& topology);
// Everything at one instant: {"time_ns", "status", "ports", "disks", "companions", "uplinks",
// "reactors"}.
[[nodiscard]] nlohmann::json everything_of(Topology& topology);

}  // namespace millrace::daemon

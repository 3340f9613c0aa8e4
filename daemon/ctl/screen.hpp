// Screen: `millctl status` as lines of text, from two samples of query-all. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace millrace::ctl {

enum class SortKey { rate, name, drops, latency };

struct ScreenOptions {
  std::size_t width = 0;   // columns; 0: as wide as needed
  std::size_t height = 0;  // lines; 0: as many as needed. Else rows are left out, and counted
  bool colour = false;
  SortKey sort = SortKey::rate;
};

[[nodiscard]] std::vector<std::string> render_status(const nlohmann::json& before,
                                                     const nlohmann::json& after,
                                                     const ScreenOptions& options);

// One list (ports, disks, uplinks, reactors, sessions, addresses) as a table, without rates.
[[nodiscard]] std::vector<std::string> render_list(const std::string& kind,
                                                   const nlohmann::json& units,
                                                   const ScreenOptions& options);
// query-counters, one line for each counter that is not 0.
[[nodiscard]] std::vector<std::string> render_counters(const nlohmann::json& counters,
                                                       const ScreenOptions& options);

}  // namespace millrace::ctl

// How millrace-bench shows what it measured: one line for a person, or JSON.
#pragma once

#include <nlohmann/json.hpp>

#include "bench/load.hpp"

namespace millrace::bench {

// The line that shows how it goes; on a terminal only.
[[nodiscard]] Watch live_line(const char* unit);
// Prints `result`, and what `more` adds. `unit` is of its operations: "IOPS", "pps".
void show(const LoadResult& result, const char* unit, bool as_json, const nlohmann::json& more);

}  // namespace millrace::bench

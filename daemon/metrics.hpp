// Prometheus text (version 0.0.4) from what query-all answers.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace millrace::daemon {

[[nodiscard]] std::string metrics_of(const nlohmann::json& everything);

}  // namespace millrace::daemon

// key=value words as a command's arguments.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace millrace::ctl {

// {"queues": 2, "name": "web0", "trunk": [10, 20]} from {"queues=2", "name=web0", "trunk=10,20"}.
// Values are numbers, true, false and lists where the key takes them, else text. `kind` is what the
// keys are of: some mean one thing here and another there.
[[nodiscard]] base::Result<nlohmann::json> parse_arguments(const std::vector<std::string>& words,
                                                           std::string_view kind = "");

}  // namespace millrace::ctl

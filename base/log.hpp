// Logging for the control thread. A reactor never logs: it counts, and control reports.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace millrace::base {

// Logs to standard error, one line a record. `level`: trace, debug, info, warning, error. `name`,
// if it is not empty, begins every line's text: whose log it is.
void set_up_log(const char* level, std::string_view name = {});

}  // namespace millrace::base

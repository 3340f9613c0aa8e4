// Logging for the control thread. A reactor never logs: it counts, and control reports.
#pragma once

#include <spdlog/spdlog.h>

namespace millrace::base {

// Logs to standard error, one line a record. `level`: trace, debug, info, warning, error.
void set_up_log(const char* level);

}  // namespace millrace::base

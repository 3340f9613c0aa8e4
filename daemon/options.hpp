// millraced's command line.
#pragma once

#include <optional>
#include <string>

namespace millrace::daemon {

struct Options {
  std::string config;              // path of the TOML file
  bool check = false;              // validate only
  std::string log_level = "info";  // trace, debug, info, warning, error
};

// The exit statuses of millraced.
enum Exit : int {
  exit_ok = 0,      // drained and closed, or the configuration is valid
  exit_failed = 1,  // the configuration is valid, and it could not be started
  exit_usage = 2,   // the command line or the configuration is wrong; nothing was started
};

// nullopt: `status` is the exit status to end with (help, --version, a wrong command line).
[[nodiscard]] std::optional<Options> parse_options(int argc, char** argv, int& status);

}  // namespace millrace::daemon

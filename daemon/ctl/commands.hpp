// What millctl can be asked to do. Each function returns the exit status.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "daemon/ctl/client.hpp"
#include "daemon/ctl/screen.hpp"

namespace millrace::ctl {

enum Exit : int {
  exit_ok = 0,
  exit_refused = 1,      // the daemon said no; its line is on standard error
  exit_usage = 2,        // the command line is wrong; nothing was asked
  exit_unreachable = 3,  // no daemon, or it hung up
};

struct Settings {
  std::string socket = "/run/millrace/control.sock";
  bool json = false;
  std::string who = "millraced";  // whose socket it is
};

struct StatusOptions {
  bool watch = false;
  SortKey sort = SortKey::rate;
  double interval_s = 0;  // 0: half a second, or one with --watch
};

// Prints the failure's line and returns its exit status.
int report(const Failure& failure);

int show_status(const Settings& settings, const StatusOptions& options);
// ports, disks, uplinks, reactors, sessions, addresses, counters
int show_list(const Settings& settings, const std::string& kind);
int show_metrics(const Settings& settings);
// Events, one line each, until the daemon ends; `count` 0: no limit.
int show_events(const Settings& settings, unsigned count);
// Executes a command and hands its answer to `show`, or prints it where JSON is wished.
int ask(const Settings& settings, const std::string& command, const nlohmann::json& arguments,
        const std::function<void(const nlohmann::json&)>& show);
// A command whose answer says only that it was done (printed with --json).
int execute(const Settings& settings, const std::string& command, const nlohmann::json& arguments);
// One request as it is; prints the whole response. Refused: exit_refused.
int send_raw(const Settings& settings, const std::string& request);

}  // namespace millrace::ctl

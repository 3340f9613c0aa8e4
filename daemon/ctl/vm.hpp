// What millctl can ask of a guest of millrace-vmm. Each function returns the exit status.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "daemon/ctl/commands.hpp"

namespace millrace::ctl {

// query-devices as a table.
[[nodiscard]] std::vector<std::string> render_devices(const nlohmann::json& devices);
// "web0: paused (stopped by the control socket), 2 vCPUs"
[[nodiscard]] std::string render_guest(const nlohmann::json& name, const nlohmann::json& status,
                                       const nlohmann::json& cpus);

int show_guest(const Settings& settings);
int show_devices(const Settings& settings);
// Asks the guest to let go of a device. `wait_s` not 0: waits so long until it has.
int remove_device(const Settings& settings, const std::string& id, unsigned wait_s);
// Writes the guest's memory and registers to `path`: a file that is replaced, and made by this
// program, since a guest's own may open none.
int dump_guest(const Settings& settings, const std::string& path);

}  // namespace millrace::ctl

// The commands of the control socket, over a Topology. Thread: control.
#pragma once

#include <functional>

#include "daemon/topology.hpp"
#include "qmp/command_table.hpp"

namespace millrace::daemon {

// `topology` must outlive the table. `quit` begins the daemon's end; it must not end it at once.
[[nodiscard]] qmp::CommandTable make_commands(Topology& topology, std::function<void()> quit);

}  // namespace millrace::daemon

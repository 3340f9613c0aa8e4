// The ports of a console as commands left them, in a file of the operator's choice (`ports_file`):
// a daemon that starts again has them, each at its number, because the guest's driver knows ports
// by that. A configuration whose own list of ports was changed since counts instead.
//
// The file says which sockets this daemon makes, so it belongs where nobody else may write. (The
// front-end's memory, where other devices keep what outlives us, is a guest's VMM's.)
// Thread: control.
#pragma once

#include "daemon/config.hpp"
#include "guest/device.hpp"

namespace millrace::daemon {

// Reads the file, where the companion is a console that has one, into ConsoleSettings::kept. That
// there is none yet is no error.
base::Result<void> take_kept_ports(GuestCompanion& companion);

// Writes what the console has now, in one step. Nothing to do without a file.
base::Result<void> keep_ports(const GuestCompanion& companion, const guest::Device& console);

}  // namespace millrace::daemon

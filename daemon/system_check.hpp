// What a configuration asks of this machine, checked before anything is started: nothing here has a
// side effect. Thread: control.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "daemon/config.hpp"

namespace millrace::daemon {

// The default of [reactors] cores: the last two usable cores, and never the first where there are
// two or more, so that the guests' own threads and the rest of the host keep one.
[[nodiscard]] std::vector<unsigned> choose_cores(const std::vector<int>& usable);

// Cores, socket directories, passed descriptors, image files.
void check_system(const Config& config, const std::vector<int>& usable, Problems& problems);
void check_system(const GuestPort& port, const std::string& title, Problems& problems);
void check_system(const GuestDisk& disk, const std::string& title, Problems& problems);
void check_system(const GuestCompanion& companion, const std::string& title, Problems& problems);

// Makes the directory that `socket` lies in, mode 0750, where its parent exists.
[[nodiscard]] base::Result<void> make_socket_directory(const std::string& socket);

}  // namespace millrace::daemon

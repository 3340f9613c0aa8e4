// What the daemon has changed of the virtual functions that it lent, in a file beside its control
// socket, for the daemon that comes after a kill -9: the values before. It is written before a
// change is made. Which functions guests have is in it, too, for whichever daemon comes next. It is
// gone while nothing is changed and no guest has one. Thread: control.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "sriov/vf_pool.hpp"

namespace millrace::daemon {

// For a control socket of that path.
[[nodiscard]] std::string kept_functions_file(const std::string& control_socket);

// Writes them in one step; with none the file goes. Errors: one line.
base::Result<void> keep_functions(const std::string& path,
                                  const std::vector<sriov::ChangedVf>& changed);

// What a daemon before us left; none without a file. Errors: one line, with what to do; the file is
// not ours, or was written half.
base::Result<std::vector<sriov::ChangedVf>> take_kept_functions(const std::string& path);

}  // namespace millrace::daemon

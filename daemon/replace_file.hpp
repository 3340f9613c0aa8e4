// A file of ours with another content: whole or not at all. Thread: control.
#pragma once

#include <string>

#include "base/result.hpp"

namespace millrace::daemon {

// Writes `text` to a file beside it (PATH.new), down to the storage, and gives that its name. Only
// its owner may read it.
base::Result<void> replace_file(const std::string& path, const std::string& text);

}  // namespace millrace::daemon

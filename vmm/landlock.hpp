// Landlock: takes the file system away from this thread and from the threads that it makes.
//
// Linux Documentation/userspace-api/landlock.rst. Files that are open stay usable, and so do Unix
// sockets: connecting to one is no opening.
#pragma once

#include <span>
#include <string>

#include "base/result.hpp"

namespace millrace::vmm {

// Every right that this kernel knows of is refused everywhere, but for removing files in `folders`.
// False: this kernel has no Landlock, and nothing was done. Fails where a folder is not there. The
// caller has set PR_SET_NO_NEW_PRIVS.
base::Result<bool> give_up_files(std::span<const std::string> folders);

}  // namespace millrace::vmm

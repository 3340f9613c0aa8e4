#include "vmm/sandbox.hpp"

#include <sys/prctl.h>
#include <time.h>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/landlock.hpp"

namespace millrace::vmm {

using base::Result;

Result<void> enter_sandbox(std::span<const std::string> socket_folders, bool passthrough) {
  ::tzset();  // the log's clock: the zone is a file
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return base::fail_errno("cannot give up new privileges");
  }
  const auto landlock = give_up_files(socket_folders);
  if (!landlock) return base::Unexpected{landlock.error()};
  if (!*landlock) {
    spdlog::info("this kernel has no Landlock: the list of system calls alone is the sandbox");
  }
  return apply(compile(rules_of(ThreadKind::main, *landlock, passthrough)));
}

Result<void> confine_thread(ThreadKind kind, bool passthrough) {
  return apply(compile(rules_of(kind, false, passthrough)));
}

}  // namespace millrace::vmm

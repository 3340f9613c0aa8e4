// Sandbox: what this process can no longer do once a guest runs: open a file, start a program, make
// a socket that is no Unix socket, map executable memory, change what it is allowed.
//
// Three layers: no new privileges, Landlock (landlock.hpp), and a list of system calls for each
// kind of thread (seccomp.hpp). A call that is on no list kills the process with SIGSYS, and the
// kernel logs a line of type 1326 that names thread and call (dmesg, or the audit log). To open a
// file is refused (EACCES) and no more: libraries try such things where they can do without.
//
// Filters are inherited by threads and add up: what the main thread may call includes what the
// others may.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "vmm/seccomp.hpp"

namespace millrace::vmm {

enum class ThreadKind {
  main,      // the loop: makes machines, serves consoles and the control socket
  vcpu,      // runs the guest, and a device's registers
  back_end,  // speaks to a vhost-user back-end
};

// The calls that a kind of thread may make. `removes_files`: of the main thread, its sockets' files
// at the end; else that is refused (EPERM). `passthrough`: of main and vcpu, the guest has
// functions of the host, or may get some.
[[nodiscard]] std::vector<CallRule> rules_of(ThreadKind kind, bool removes_files = false,
                                             bool passthrough = false);

// Shuts this process in. Called once, by the main thread, while there is no other.
// `socket_folders`: where it may remove files, which only Landlock can limit: without it none. One
// line in the log where the kernel lacks something.
base::Result<void> enter_sandbox(std::span<const std::string> socket_folders,
                                 bool passthrough = false);

// Narrows what this thread, made by the main thread in the sandbox, may do.
base::Result<void> confine_thread(ThreadKind kind, bool passthrough = false);

}  // namespace millrace::vmm

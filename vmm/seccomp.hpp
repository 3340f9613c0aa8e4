// Seccomp: a list of the system calls that a thread may make, as a filter that the kernel keeps.
//
// The kernel applies a filter to this thread and to the threads that it makes from then on; filters
// add up, and the strictest decides. Linux Documentation/userspace-api/seccomp_filter.rst.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"

namespace millrace::vmm {

// What a call's argument may be: equal to `value` in the bits of `mask`. The kernel takes the low
// half of all arguments that are looked at here, so the high half is not.
struct ArgumentRule {
  std::uint32_t value;
  std::uint32_t mask = 0xffff'ffff;
};

// A call that may be made (refusal 0), or that fails with `refusal`, an errno. With `choices`, one
// of them holds for the argument, or else the call is as forbidden as any that no rule names.
struct CallRule {
  int call;  // SYS_...
  int refusal = 0;
  unsigned argument = 0;
  std::vector<ArgumentRule> choices{};
};

// A forbidden call kills the process (SIGSYS) and leaves a line in the kernel's log. Rules are
// tried in their order: the frequent ones first. A call has one rule. x86-64 only, and not x32.
[[nodiscard]] std::vector<sock_filter> compile(std::span<const CallRule> rules);

// For this thread, for ever. The caller has set PR_SET_NO_NEW_PRIVS.
base::Result<void> apply(std::span<const sock_filter> filter);

}  // namespace millrace::vmm

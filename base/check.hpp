// CHECK stops the process loudly on a fault of our own. A peer's fault is never a CHECK.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace millrace::base {

// Prints one line and aborts. Async-signal-unsafe; any thread.
[[noreturn]] inline void check_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "millrace: our own fault: CHECK(%s) failed at %s:%d; please report it\n",
               expression, file, line);
  std::abort();
}

}  // namespace millrace::base

#define CHECK(expression)                                                          \
  (static_cast<bool>(expression) ? static_cast<void>(0)                            \
                                 : ::millrace::base::check_failed(#expression, __FILE__, __LINE__))

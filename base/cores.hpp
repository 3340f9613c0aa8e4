// Processor cores that this process may use. Control thread.
#pragma once

#include <pthread.h>

#include <vector>

#include "base/result.hpp"

namespace millrace::base {

// The cores in this thread's affinity mask, ascending: what taskset, a cgroup or systemd left us.
Result<std::vector<int>> usable_cores();

// Pins `thread` to one core.
Result<> pin_thread(pthread_t thread, int core);

}  // namespace millrace::base

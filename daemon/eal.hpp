// EAL: sets up DPDK's environment layer, once, when the first uplink needs it. Thread: control, but
// for register_reactor_thread().
#pragma once

#include "base/result.hpp"

namespace millrace::daemon {

// Starts the EAL with `memory_mb` MiB for its pools (ordinary pages, or hugepages of the machine's
// default size), no PCI function but those that uplinks name later, and no files shared with other
// processes. Does nothing when it runs already. The caller keeps its affinity and its signal mask;
// the EAL's own threads take no signals. A failed start cannot be tried again: later calls return
// the same error.
[[nodiscard]] base::Result<void> start_eal(unsigned memory_mb, bool hugepages = false);

[[nodiscard]] bool eal_started() noexcept;

// Makes the calling reactor thread known to the EAL, so that mempools give it a cache of its own.
// Once for each thread; further calls do nothing. True if it is registered.
bool register_reactor_thread() noexcept;

}  // namespace millrace::daemon

// A virtual function for an uplink from the pool of the configuration's physical functions.
// Thread: control.
#pragma once

#include "base/result.hpp"
#include "daemon/config.hpp"
#include "sriov/vf_pool.hpp"

namespace millrace::daemon {

// Borrows a function of `entry.pf`, one near `node` (where the uplink's reactor runs, or
// base::any_node) as long as one is free there, and makes it what the uplink needs: the one
// station's address where `mac` is given, else trust and no spoof check, as far as its physical
// function's driver grants them (an uplink that hears too little is refused when it opens). `entry`
// names the function afterwards; one that it named before is taken only where no other is free.
// Errors: one line; nothing is borrowed then.
[[nodiscard]] base::Result<sriov::VfLease> lease_for(UplinkEntry& entry, sriov::VfPool& pool,
                                                     int node);

}  // namespace millrace::daemon

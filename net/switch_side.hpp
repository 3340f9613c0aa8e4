// SwitchSide: what a queue needs of the switch on one reactor. Control fills one for each reactor
// when the port is made; workers pick theirs when they are attached.
#pragma once

#include <span>

#include "switch/bridge.hpp"
#include "switch/counters.hpp"

namespace millrace::net {

struct SwitchSide {
  vswitch::Bridge* bridge = nullptr;
  vswitch::PortCounters* counters = nullptr;
};

using SwitchSides = std::span<const SwitchSide>;  // by reactor; outlives every worker

// One queue's own numbers. Written by its reactor, read by any thread.
struct QueueTraffic {
  base::Counter packets, bytes;
};

}  // namespace millrace::net

// Mirror: a copy of every frame that some ports send or get, for one port that watches.
//
// The destination is for copies alone: it gets no other frame, and what it sends is dropped. A copy
// is the frame as the bridge has it, with its tag where it travels in a VLAN. Each frame is copied
// once for a mirror, however many of its ports have to do with it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/counter.hpp"
#include "switch/packet.hpp"

namespace millrace::vswitch {

// As the switch sees it.
enum class MirrorDirection : std::uint8_t {
  both,
  in,   // what the switch takes from the port
  out,  // what it sends to the port, whether that has room for it or not
};

struct MirrorConfig {
  std::vector<PortId> from;
  PortId to = no_port;
  MirrorDirection direction = MirrorDirection::both;
};

// Since it was added. Some of the frames were dropped: at the destination, or on the way there.
struct MirrorFigures {
  std::uint64_t frames = 0, bytes = 0, dropped = 0;
};

// One writer each: a reactor.
struct MirrorCounters {
  base::Counter frames, bytes;  // without tags
};

using MirrorSet = std::uint32_t;  // of one shard's mirrors
inline constexpr unsigned mirrors_max = 32;

}  // namespace millrace::vswitch

// NetLoad: frames from one vhost-user NIC to another, both driven by this one thread; or between
// many pairs in turn; or out of a single NIC and into it, where the other end is no NIC.
//
// The sender keeps its transmit ring full (or keeps to a rate), the receiver its receive ring.
// Every frame carries its number and the moment it was put up, so loss, order and latency are
// seen; a frame in `check_every` is compared byte by byte.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "bench/load.hpp"

namespace millrace::bench {

struct NetLoadConfig {
  std::string from, to;            // sockets; `to` empty: see `out` and `in`
  std::vector<std::string> pairs;  // more of them: from, to, from, to...
  std::vector<std::string> idle;   // NICs that are connected and do nothing
  // Of a single NIC: frames go out and are counted when the device is done with them; frames that
  // come in are counted, whatever they are.
  bool out = false, in = false;
  std::string expect;           // a capture; of `in`: what is no frame of its is wrong
  std::uint32_t addresses = 1;  // that the frames go to, all learned before, at the receiver's port
  unsigned slots = 1;           // regions that each NIC's memory is in
  std::uint32_t frame = 64;     // bytes without the frame check sequence, 60 at least
  bool tso = false;             // frames of more than 1514 bytes are TCP segments to be cut up
  double rate = 0;              // frames a second; 0: as many as go
  unsigned burst = 32;          // frames put up at once
  std::uint16_t ring = 1024;    // of each queue
  bool listen = false;          // the back-end connects to us
  bool packed = false;
  // As stock Linux drivers: event index, and packets to be cut up in fragments of a page each,
  // which a table names.
  bool stock = false;
  bool inflight = false;  // the back-end notes what it has, and gives buffers back in any order
  unsigned check_every = 64;
};

struct NetResult : LoadResult {
  std::uint64_t sent = 0, wrong = 0;  // operations: frames received
};

// Of a load whose frames a BareSwitch moves: what that took, all of it since the start.
struct BareResult : NetResult {
  std::uint64_t busy_cycles = 0, moved = 0;
};

class NetLoad {
 public:
  // The driver's own speed: one NIC whose frames a thread on `core` takes (and brings) without
  // looking at them. `out` and `in` as above; split rings.
  static base::Result<NetResult> ceiling(const NetLoadConfig& config, int core,
                                         const LoadTime& time);
  // What a switch costs at least: two NICs between which a BareSwitch on `core` moves the frames.
  static base::Result<BareResult> bare_switch(const NetLoadConfig& config, int core,
                                              const LoadTime& time);
  // Connects both, starts their queues, and lets the switch learn both addresses. Fails in one
  // line: nobody there, no such ring format, no frame arrives.
  static base::Result<std::unique_ptr<NetLoad>> make(const NetLoadConfig& config);
  virtual ~NetLoad() = default;
  NetLoad(const NetLoad&) = delete;
  NetLoad& operator=(const NetLoad&) = delete;

  virtual base::Result<NetResult> run(const LoadTime& time) = 0;

 protected:
  NetLoad() = default;
};

}  // namespace millrace::bench

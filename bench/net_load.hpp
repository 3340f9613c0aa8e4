// NetLoad: frames from one vhost-user NIC to another, both driven by this one thread.
//
// The sender keeps its transmit ring full (or keeps to a rate), the receiver its receive ring.
// Every frame carries its number and the moment it was put up, so loss, order and latency are
// seen; a frame in `check_every` is compared byte by byte.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.hpp"
#include "bench/load.hpp"

namespace millrace::bench {

struct NetLoadConfig {
  std::string from, to;       // sockets
  std::uint32_t frame = 64;   // bytes without the frame check sequence, 60 at least
  bool tso = false;           // frames of more than 1514 bytes are TCP segments to be cut up
  double rate = 0;            // frames a second; 0: as many as go
  unsigned burst = 32;        // frames put up at once
  std::uint16_t ring = 1024;  // of each queue
  bool listen = false;        // the back-end connects to us
  bool packed = false;
  unsigned check_every = 64;
};

struct NetResult : LoadResult {
  std::uint64_t sent = 0, wrong = 0;  // operations: frames received
};

class NetLoad {
 public:
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

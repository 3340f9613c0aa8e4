// FreeDevice: a network device that does nothing, at once: it gives back every buffer as if it had
// sent or filled it. A driver is as fast as it can be beside it. Split rings, a thread of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>

#include "base/result.hpp"
#include "bench/socket_guest.hpp"

namespace millrace::bench {

class FreeDevice {
 public:
  // Serves rings 0 (received frames, said to be `frame` bytes each) and 1 of `guest`, which
  // outlives it. `core`: where its thread runs, -1 anywhere. Fails where there is no such core.
  static base::Result<std::unique_ptr<FreeDevice>> start(SocketGuest& guest, std::uint32_t frame,
                                                         int core);
  ~FreeDevice() = default;  // ends the thread
  FreeDevice(const FreeDevice&) = delete;
  FreeDevice& operator=(const FreeDevice&) = delete;

 private:
  FreeDevice() = default;
  std::jthread thread_;
};

}  // namespace millrace::bench

// BareSwitch: moves every frame of one NIC's transmit ring into another's receive ring and does
// nothing else: no check, no address, no port. What any switch costs at least, with the same driver
// at both ends. Split rings with a descriptor for each frame, a thread of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>

#include "base/counter.hpp"
#include "base/result.hpp"
#include "bench/socket_guest.hpp"

namespace millrace::bench {

class BareSwitch {
 public:
  // Takes from ring 1 of `from`, puts into ring 0 of `to`; both outlive it, and it believes every
  // word of theirs. `core`: where its thread runs, -1 anywhere. Fails where there is no such core.
  static base::Result<std::unique_ptr<BareSwitch>> start(SocketGuest& from, SocketGuest& to,
                                                         int core);
  ~BareSwitch() = default;  // ends the thread
  BareSwitch(const BareSwitch&) = delete;
  BareSwitch& operator=(const BareSwitch&) = delete;

  // TSC cycles of the rounds that moved frames, and how many they moved. Thread: any.
  [[nodiscard]] std::uint64_t busy_cycles() const { return busy_cycles_.get(); }
  [[nodiscard]] std::uint64_t frames() const { return frames_.get(); }

 private:
  BareSwitch() = default;
  base::Counter busy_cycles_, frames_;
  std::jthread thread_;
};

}  // namespace millrace::bench

// Where a thread of the bench runs. A load beside a polling back-end on the same core measures the
// scheduler.
#pragma once

#include <thread>

#include "base/result.hpp"

namespace millrace::bench {

// Pins the calling thread; -1: anywhere. Fails in one line where there is no such core.
[[nodiscard]] base::Result<void> pin_self(int core);
[[nodiscard]] base::Result<void> pin(std::jthread& thread, int core);

// A thread that keeps a core busy, as a load on it would, until it goes. -1: none.
class Spinner {
 public:
  static base::Result<Spinner> start(int core);

 private:
  std::jthread thread_;
};

}  // namespace millrace::bench

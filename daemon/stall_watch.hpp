// StallWatch: whether a device that was lent memory stands still with it. Thread: control.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

namespace millrace::daemon {

class StallWatch {
 public:
  static constexpr std::chrono::seconds look_every{1};

  // What was lent so far, and how much of that is over. True: some of it is out, and none of it
  // came back since three looks before; since two where the device `rests`: others carry in its
  // place, and whoever waits for what it has could send by those.
  bool look(std::uint64_t lent, std::uint64_t over, bool rests) {
    const bool moved = std::exchange(over_, over) != over || lent == over;
    still_ = moved ? 0 : still_ + 1;
    return still_ >= (rests ? looks - 1 : looks);
  }

 private:
  static constexpr unsigned looks = 3;
  std::uint64_t over_ = 0;
  unsigned still_ = 0;
};

}  // namespace millrace::daemon

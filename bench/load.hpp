// What every load has in common: how long it runs, what it counts, how it is watched.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/histogram.hpp"

namespace millrace::bench {

struct LoadResult {
  std::uint64_t operations = 0, bytes = 0;
  std::uint64_t all_operations = 0;  // those of the warm-up too
  std::uint64_t kicks = 0;
  double seconds = 0;
  base::FineHistogram::Snapshot latency{};  // nanoseconds, of each operation

  [[nodiscard]] double rate() const {
    return seconds > 0 ? static_cast<double>(operations) / seconds : 0;
  }
};

// Called a few times a second with what there is so far; false: the load ends early.
using Watch = std::function<bool(const LoadResult& so_far)>;

struct LoadTime {
  double warm_up = 0.5, seconds = 5;  // what happens in the first is not counted
  std::function<void()> before{};     // called once all is set up, before the warm-up begins
  Watch watch{};
};

// How long a device may do nothing before a load says that it stands still.
inline constexpr std::uint64_t patience_ns = 5'000'000'000;
[[nodiscard]] std::string stood_still(unsigned in_flight);

// Keeps a load's time: one round() a turn of its loop.
class Pace {
 public:
  explicit Pace(const LoadTime& time);
  enum class State : std::uint8_t { running, over, stalled };
  // `done` operations came back since the last round. Updates result.seconds, and shows the watch
  // what there is.
  State round(unsigned done, LoadResult& result, const base::FineHistogram& latency);
  // Whether what comes back now is counted: the warm-up is over.
  [[nodiscard]] bool counts() const { return counting_; }

 private:
  const LoadTime& time_;
  const std::uint64_t warm_up_, length_, patience_, beat_;  // TSC cycles
  std::uint64_t begun_ = 0, progress_ = 0, shown_ = 0;
  bool counting_ = false;
};

}  // namespace millrace::bench

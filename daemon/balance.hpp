// Which queue shall go to which reactor: the rule alone, over measured loads. Thread: any.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace millrace::daemon {

// Shares of a core's time in the last period, 0 to 1.
struct QueueLoad {
  std::string kind, unit;  // "port", "web0"
  unsigned queue = 0, reactor = 0;
  double load = 0;
  bool pinned = false;    // somebody said where it shall be
  bool can_move = false;  // its device lets it go, and it has not moved lately
};

struct QueueMove {
  std::size_t queue = 0;  // position in the list
  unsigned reactor = 0;   // the new owner
};

// A reactor below this has no reason to give anything away.
inline constexpr double busy_load = 0.7;
// What the busiest reactor must gain, so that a queue is not sent to and fro.
inline constexpr double gain_min = 0.15;

// The move that leaves the busiest reactor and the idlest one most alike; none where it gains too
// little. `reactors`: their loads.
[[nodiscard]] std::optional<QueueMove> choose_move(std::span<const double> reactors,
                                                   std::span<const QueueLoad> queues);

}  // namespace millrace::daemon

#include "daemon/balance.hpp"

#include <algorithm>

namespace millrace::daemon {

std::optional<QueueMove> choose_move(std::span<const double> reactors,
                                     std::span<const QueueLoad> queues) {
  if (reactors.size() < 2) return std::nullopt;
  const auto [idlest, busiest] = std::minmax_element(reactors.begin(), reactors.end());
  if (*busiest < busy_load) return std::nullopt;
  const auto from = static_cast<unsigned>(busiest - reactors.begin());
  std::optional<QueueMove> best;
  double least = *busiest - gain_min;
  for (std::size_t i = 0; i < queues.size(); ++i) {
    const QueueLoad& queue = queues[i];
    if (queue.reactor != from || queue.pinned || !queue.can_move) continue;
    const double peak = std::max(*busiest - queue.load, *idlest + queue.load);
    if (peak > least) continue;
    least = peak;
    best = QueueMove{i, static_cast<unsigned>(idlest - reactors.begin())};
  }
  return best;
}

}  // namespace millrace::daemon

#include "daemon/balancer.hpp"

#include <algorithm>
#include <chrono>

#include "base/clock.hpp"

namespace millrace::daemon {

namespace {

constexpr std::chrono::milliseconds period{1000};
constexpr unsigned periods_before_a_move = 2, rest_periods = 10;

}  // namespace

Balancer::Balancer(base::EventLoop& loop, base::ReactorPool& reactors, Devices devices, bool moves)
    : reactors_{reactors},
      devices_{std::move(devices)},
      moves_{moves},
      measured_at_{base::cycles()},
      busy_(reactors.size()),
      moving_{std::make_shared<bool>(false)} {
  timer_ = loop.every(period, [this] {
    measure();
    balance();
  });
}

std::vector<QueueLoad> Balancer::queues() const {
  std::vector<QueueLoad> out;
  devices_.for_each([&](const char* kind, const std::string& name, virtio::DeviceBase& device) {
    for (unsigned i = 0; i < device.queues_max(); ++i) {
      const auto status = device.queue_status(i);
      if (!status.started) continue;
      const auto seen = seen_.find({name, i});
      const bool known = seen != seen_.end();
      out.push_back({kind, name, i, status.reactor, known ? seen->second.load : 0, status.pinned,
                     status.can_move && known && seen->second.rests == 0});
    }
  });
  return out;
}

void Balancer::measure() {
  const auto now = base::cycles();
  const auto elapsed = std::max<std::uint64_t>(now - measured_at_, 1);
  measured_at_ = now;
  for (unsigned i = 0; i < reactors_.size(); ++i) {
    const auto busy = reactors_.at(i).counters().busy_cycles.get();
    const auto spent = busy - std::exchange(busy_[i], busy);
    reactors_.set_load(i, static_cast<double>(spent) / static_cast<double>(elapsed));
  }
  measure_queues(elapsed);
  share_what_is_left();
}

void Balancer::measure_queues(std::uint64_t elapsed) {
  for (auto& [key, seen] : seen_) seen.there = false;
  devices_.for_each([&](const char*, const std::string& name, virtio::DeviceBase& device) {
    for (unsigned i = 0; i < device.queues_max(); ++i) {
      const auto status = device.queue_status(i);
      if (!status.started) continue;
      Seen& seen = seen_[{name, i}];
      // One that was started anew counts from 0 again.
      if (status.busy_cycles < seen.cycles) seen.cycles = 0;
      const auto spent = status.busy_cycles - std::exchange(seen.cycles, status.busy_cycles);
      seen.load = std::min(1.0, static_cast<double>(spent) / static_cast<double>(elapsed));
      seen.there = true;
      if (seen.rests > 0) --seen.rests;
    }
  });
  std::erase_if(seen_, [](const auto& each) { return !each.second.there; });
}

// What a reactor does for its queues outside of their visits (io_uring, links) is theirs, by their
// share. Where an uplink's queues are, too, nobody can tell whose it is.
void Balancer::share_what_is_left() {
  const auto list = queues();
  for (unsigned reactor = 0; reactor < reactors_.size(); ++reactor) {
    double sum = 0;
    for (const auto& queue : list) sum += queue.reactor == reactor ? queue.load : 0;
    const double whole = reactors_.load(reactor);
    if (sum <= 0 || devices_.is_shared(reactor)) continue;
    for (const auto& queue : list) {
      if (queue.reactor == reactor) seen_[{queue.unit, queue.queue}].load *= whole / sum;
    }
  }
}

void Balancer::balance() {
  if (!moves_ || *moving_) return;
  std::vector<double> loads;
  for (unsigned i = 0; i < reactors_.size(); ++i) loads.push_back(reactors_.load(i));
  const auto list = queues();
  const auto move = choose_move(loads, list);
  busy_periods_ = move ? busy_periods_ + 1 : 0;
  if (!move || busy_periods_ < periods_before_a_move) return;
  busy_periods_ = 0;
  *moving_ = true;
  const QueueLoad& queue = list[move->queue];
  seen_[{queue.unit, queue.queue}].rests = rest_periods;
  devices_.move(queue, move->reactor, [moving = moving_] { *moving = false; });
}

}  // namespace millrace::daemon

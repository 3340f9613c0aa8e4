// CallPacer: holds calls to the driver back as it asked (virtio 1.2 §5.1.6.5.9), until so many
// packets wait or the first of them has waited so long, whichever comes first.
//
// Used buffers are published at once in any case: a driver that polls sees them. A call is owed
// from when the driver wanted one; what its event index or flags say against one is kept to.
// Thread: the queue's reactor.
#pragma once

#include <cstdint>

#include "base/clock.hpp"
#include "base/poller.hpp"
#include "virtio/queue.hpp"

namespace millrace::net {

// As the driver set it. No time: calls are not held back, whatever the number of packets.
struct Coalescing {
  std::uint32_t packets = 0;  // 0: any number may wait
  std::uint32_t microseconds = 0;
  bool operator==(const Coalescing&) const = default;
};

// The same in a reactor's terms. Made by control.
struct Pace {
  std::uint32_t packets = 0;
  std::uint64_t cycles = 0;
  [[nodiscard]] static Pace of(const Coalescing& coalescing) {
    return {coalescing.packets, base::ns_to_cycles(1000ull * coalescing.microseconds)};
  }
};

class CallPacer {
 public:
  // What is owed under the pace before is sent.
  void set(const Pace& pace, virtio::Queue& queue, base::CallSignal& calls) noexcept {
    flush(queue, calls);
    pace_ = pace;
  }
  // Publishes what `queue` has given, `packets` more; calls the driver now or owes it.
  void publish(virtio::Queue& queue, std::size_t packets, base::Reactor& reactor) noexcept {
    if (pace_.cycles == 0) return queue.publish_and_call(reactor.calls());
    const bool wanted = queue.publish();
    if (!owed_ && !wanted) return;
    if (!owed_) owed_ = true, waiting_ = 0, due_ = reactor.round_cycles() + pace_.cycles;
    waiting_ += packets;
    if (pace_.packets != 0 && waiting_ >= pace_.packets) flush(queue, reactor.calls());
  }
  // Sends the call that is due. True: there was one.
  bool poll(virtio::Queue& queue, base::Reactor& reactor) noexcept {
    if (!owed_ || static_cast<std::int64_t>(reactor.round_cycles() - due_) < 0) return false;
    flush(queue, reactor.calls());
    return true;
  }
  // Sends what is owed: the queue stops.
  void flush(virtio::Queue& queue, base::CallSignal& calls) noexcept {
    if (owed_) queue.call(calls);
    owed_ = false;
  }
  [[nodiscard]] bool owes() const noexcept { return owed_; }
  [[nodiscard]] bool paces() const noexcept { return pace_.cycles != 0; }
  // How long the reactor may sleep.
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept {
    if (!owed_) return base::Poller::sleep_for_ever;
    const auto left = static_cast<std::int64_t>(due_ - base::cycles());
    return left <= 0 ? 0 : base::cycles_to_ns(static_cast<std::uint64_t>(left)) + 1;
  }

 private:
  Pace pace_;
  bool owed_ = false;
  std::uint64_t waiting_ = 0;  // packets since the call became owed
  std::uint64_t due_ = 0;      // TSC
};

}  // namespace millrace::net

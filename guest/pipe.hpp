// Pipe: bytes between a virtqueue, which a reactor serves, and control.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <cstdint>

#include "base/counter.hpp"
#include "base/fd.hpp"
#include "guest/byte_ring.hpp"

namespace millrace::guest {

// Wakes control up: many raises before it looks are one. Thread: raise() any, the rest control.
class Notifier {
 public:
  explicit Notifier(base::Fd event) : event_{std::move(event)} {}
  // Never blocks: the eventfd is ours alone, and non-blocking.
  void raise() noexcept {
    if (!raised_.exchange(true)) ::eventfd_write(event_.get(), 1);
  }
  // Before looking for what it was about.
  void lower() noexcept {
    eventfd_t count = 0;
    ::eventfd_read(event_.get(), &count);
    raised_.exchange(false);
  }
  [[nodiscard]] int fd() const noexcept { return event_.get(); }

 private:
  base::Fd event_;
  std::atomic<bool> raised_{false};
};

// What the reactor does with bytes. Set by control at any time.
enum class Flow : std::uint8_t {
  drop,  // throws them away
  hold,  // what does not fit waits, and its sender with it
  shed,  // what does not fit is thrown away
};

struct Pipe {
  Pipe(std::size_t capacity, Flow first, Notifier& control)
      : ring{capacity}, flow{first}, notifier{control} {}
  ByteRing ring;
  std::atomic<Flow> flow;
  Notifier& notifier;
  // Thread: written by the queue's reactor, read by any.
  base::Counter bytes, dropped;
};

}  // namespace millrace::guest

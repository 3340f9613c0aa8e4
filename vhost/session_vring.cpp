// Session: virtqueues ("Ring states": a ring is started by its kick and stopped by GET_VRING_BASE).
#include <fcntl.h>

#include <utility>

#include "vhost/session.hpp"
#include "virtio/features.hpp"
#include "virtio/limits.hpp"

namespace millrace::vhost {

namespace {

// Another descriptor for the same thing; the session keeps the first for the ring's next start.
base::Result<base::Fd> duplicate(const base::Fd& fd) {
  if (!fd.valid()) return base::Fd{};
  base::Fd copy{::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.valid()) return base::fail("no descriptor is left for it");
  return copy;
}

bool same_place(const wire::VringAddr& a, const wire::VringAddr& b) {
  return a.descriptors == b.descriptors && a.used == b.used && a.available == b.available;
}

bool same_log(const wire::VringAddr& a, const wire::VringAddr& b) {
  return a.log == b.log && ((a.flags ^ b.flags) & wire::vring_flag_log) == 0;
}

}  // namespace

// Compared as it came, before any narrowing.
base::Result<unsigned> Session::ring_index(std::uint64_t index) const {
  if (index >= rings_.size()) {
    return base::fail("queue " + std::to_string(index) + ", but this device has " +
                      std::to_string(rings_.size()) + " queues");
  }
  return static_cast<unsigned>(index);
}

base::Result<Session::RingFd> Session::ring_fd(Message& message) const {
  const auto word = message.as<std::uint64_t>();
  const bool no_fd = (word & wire::vring_no_fd) != 0;
  auto index = ring_index(word & ~wire::vring_no_fd);
  if (!index) return base::Unexpected{index.error()};
  if (no_fd != message.fds.empty()) {
    return base::fail(no_fd ? "came with a descriptor it says it has not"
                            : "came with no descriptor");
  }
  if (no_fd) return RingFd{*index, base::Fd{}};
  if (base::kind_of(message.fds[0]) != base::FdKind::eventfd) {
    return base::fail("its descriptor is not an eventfd");
  }
  return RingFd{*index, std::move(message.fds[0])};
}

// Without protocol features there is no message that enables a ring.
bool Session::enabled(const Ring& ring) const {
  return ring.enabled.value_or((features_ & virtio::feature::protocol_features) == 0);
}

bool Session::ready(const Ring& ring) const {
  return !ring.started && ring.has_kick && ring.size != 0 && ring.address && !memory_.empty();
}

Session::Handled Session::set_vring_num(Message& message) {
  const auto state = message.as<wire::VringState>();
  const auto index = ring_index(state.index);
  if (!index) return base::Unexpected{index.error()};
  if (state.num < virtio::limits::queue_size_min || state.num > virtio::limits::queue_size_max) {
    return base::fail("a ring of " + std::to_string(state.num) + " entries");
  }
  Ring& ring = rings_[*index];
  if (!ring.started || ring.size == state.num) {
    ring.size = state.num;
    return start_if_ready(*index);
  }
  if (enabled(ring)) return base::fail("the ring is running");
  waiting_ = true;
  stop_ring(*index, [this, &ring, state] {
    ring.size = state.num;
    finish({});
  });
  return Progress::pending;
}

// A running ring gets an address again when logging is switched: it is stopped where it is and
// started again from there. A ring that is disabled and gets another place is a new ring, which
// waits for its kick.
Session::Handled Session::set_vring_addr(Message& message) {
  const auto address = message.as<wire::VringAddr>();
  const auto index = ring_index(address.index);
  if (!index) return base::Unexpected{index.error()};
  Ring& ring = rings_[*index];
  if (!ring.started) {
    ring.address = address;
    return start_if_ready(*index);
  }
  const bool moved = !same_place(*ring.address, address);
  if (!moved && same_log(*ring.address, address)) return Progress::done;
  auto kick = duplicate(ring.kick);
  if (!kick) return base::Unexpected{kick.error()};
  const auto kept = std::make_shared<base::Fd>(std::move(kick).value());
  const bool again = enabled(ring) || !moved;
  ring.address = address;
  waiting_ = true;
  stop_ring(*index, [this, index = *index, again, kept] {
    if (!again) return finish({});
    rings_[index].has_kick = true;
    rings_[index].kick = std::move(*kept);
    start_ring(index, [this](const base::Result<void>& result) { finish(result); });
  });
  return Progress::pending;
}

Session::Handled Session::set_vring_base(Message& message) {
  const auto state = message.as<wire::VringState>();
  const auto index = ring_index(state.index);
  if (!index) return base::Unexpected{index.error()};
  if ((features_ & virtio::feature::ring_packed) == 0 && state.num > 0xffff) {
    return base::fail("a ring base of " + std::to_string(state.num));
  }
  Ring& ring = rings_[*index];
  if (!ring.started) {
    ring.base = state.num;
    return Progress::done;
  }
  // Front-ends that reset a guest by disabling its rings set them up again over the old ones.
  if (enabled(ring)) return base::fail("the ring is running");
  waiting_ = true;
  stop_ring(*index, [this, &ring, state] {
    ring.base = state.num;
    finish({});
  });
  return Progress::pending;
}

Session::Handled Session::get_vring_base(Message& message) {
  const auto state = message.as<wire::VringState>();
  const auto index = ring_index(state.index);
  if (!index) return base::Unexpected{index.error()};
  waiting_ = true;
  stop_ring(*index, [this, index = *index] {
    reply(bytes_of(wire::VringState{.index = index, .num = rings_[index].base}));
    finish_replied();
  });
  return Progress::pending;
}

Session::Handled Session::set_vring_kick(Message& message) {
  auto taken = ring_fd(message);
  if (!taken) return base::Unexpected{taken.error()};
  Ring& ring = rings_[taken->index];
  ring.has_kick = true;
  ring.kick = std::move(taken->fd);
  if (!ring.started) return start_if_ready(taken->index);
  auto copy = duplicate(ring.kick);
  if (!copy) return base::Unexpected{copy.error()};
  device_.set_kick(taken->index, std::move(copy).value(), finish_when_done());
  return Progress::pending;
}

Session::Handled Session::set_vring_call(Message& message) {
  auto taken = ring_fd(message);
  if (!taken) return base::Unexpected{taken.error()};
  Ring& ring = rings_[taken->index];
  ring.call = std::move(taken->fd);
  if (!ring.started) return Progress::done;
  auto copy = duplicate(ring.call);
  if (!copy) return base::Unexpected{copy.error()};
  device_.set_call(taken->index, std::move(copy).value(), finish_when_done());
  return Progress::pending;
}

// Of a running ring: used from its next start.
Session::Handled Session::set_vring_err(Message& message) {
  auto taken = ring_fd(message);
  if (!taken) return base::Unexpected{taken.error()};
  rings_[taken->index].error = std::move(taken->fd);
  return Progress::done;
}

Session::Handled Session::set_vring_enable(Message& message) {
  const auto state = message.as<wire::VringState>();
  const auto index = ring_index(state.index);
  if (!index) return base::Unexpected{index.error()};
  if (state.num > 1) return base::fail("neither on nor off but " + std::to_string(state.num));
  Ring& ring = rings_[*index];
  ring.enabled = state.num == 1;
  if (!ring.started) return Progress::done;
  device_.enable_queue(*index, state.num == 1, finish_when_done());
  return Progress::pending;
}

Session::Handled Session::start_if_ready(unsigned index) {
  if (!ready(rings_[index])) return Progress::done;
  waiting_ = true;
  start_ring(index, [this](const base::Result<void>& result) { finish(result); });
  return Progress::pending;
}

// Starts whatever can be started, one after another, and finishes the message.
void Session::start_ready_rings() {
  for (unsigned index = 0; index < rings_.size(); ++index) {
    if (!ready(rings_[index])) continue;
    waiting_ = true;
    return start_ring(index, [this](const base::Result<void>& result) {
      if (!result) return finish(result);
      start_ready_rings();
    });
  }
  finish({});
}

void Session::start_ring(unsigned index, virtio::Device::Done then) {
  Ring& ring = rings_[index];
  auto kick = duplicate(ring.kick), call = duplicate(ring.call), error = duplicate(ring.error);
  if (!kick || !call || !error) return then(base::fail("no descriptor is left for the ring"));
  virtio::QueueStart start;
  start.index = index;
  start.ring = {.size = ring.size,
                .features = features_ & ~vhost_bits,
                .descriptors = ring.address->descriptors,
                .driver_area = ring.address->available,
                .device_area = ring.address->used,
                .log_address = ring.address->log,
                .log_ring = (ring.address->flags & wire::vring_flag_log) != 0,
                .base = ring.base};
  start.memory = memory_.snapshot();
  start.kick = std::move(kick).value();
  start.call = std::move(call).value();
  start.error = std::move(error).value();
  start.enabled = enabled(ring);
  start.log = active_log();
  start.inflight = inflight_;
  device_.start_queue(std::move(start),
                      guarded([this, index, then = std::move(then)](base::Result<void> result) {
                        rings_[index].started = result.has_value();
                        if (!result) rings_[index].has_kick = false;
                        proceed([&] { then(result); });
                      }));
}

// Also for a ring that is not started: its base is what it was set to. A new kick is needed to
// start.
void Session::stop_ring(unsigned index, Then then) {
  Ring& ring = rings_[index];
  ring.has_kick = false;
  ring.kick.reset();
  if (!ring.started) return then();
  device_.stop_queue(index, guarded([this, index, then = std::move(then)](std::uint32_t base) {
                       rings_[index].started = false;
                       rings_[index].base = base;
                       proceed(then);
                     }));
}

void Session::stop_all(Then then) {
  for (unsigned index = 0; index < rings_.size(); ++index) {
    if (!rings_[index].started) continue;
    return stop_ring(index, [this, then = std::move(then)] { stop_all(then); });
  }
  then();
}

// Back to how rings were at the start of the session, but for the call and error descriptors, which
// front-ends set once and do not always send again, and the base: QEMU 7.2 sets the status to 0
// before it asks where the rings stopped, and a migration goes on from there.
void Session::reset_rings(Then then) {
  stop_all([this, then = std::move(then)] {
    for (auto& ring : rings_) {
      ring = Ring{.size = 0,
                  .base = ring.base,
                  .address = {},
                  .has_kick = false,
                  .kick = base::Fd{},
                  .call = std::move(ring.call),
                  .error = std::move(ring.error),
                  .enabled = {},
                  .started = false};
    }
    then();
  });
}

}  // namespace millrace::vhost

// Poller: one source of work on a reactor (a virtqueue, a NIC queue, an io_uring, a link).
//
// Life: Reactor::add, then poll() once a round while the reactor is busy. When nothing was found
// for the reactor's spin time, every poller is armed; if none finds work after arming, the reactor
// sleeps in one epoll on what the pollers lent it (Reactor::watch) and disarms them on waking.
// Thread: the owning reactor only. Nothing here may allocate, lock, block or throw.
#pragma once

#include <cstdint>
#include <limits>

#include "base/counter.hpp"

namespace millrace::base {

// A word that another party writes, and what it is for as long as there is nothing to do. No word:
// one has to look.
struct Glance {
  const std::uint16_t* word = nullptr;
  std::uint16_t idle = 0;
};

class Poller {
 public:
  static constexpr std::uint64_t sleep_for_ever = std::numeric_limits<std::uint64_t>::max();

  virtual ~Poller() = default;
  // One bounded visit. Returns true if any work was done.
  virtual bool poll() noexcept = 0;
  // A visit is about to come, after somebody else's: bring near what it begins with. Called where
  // the word that was looked at is another.
  virtual void come_near() noexcept {}
  // Turns notifications on. Returns true if work was found after turning them on: do not sleep.
  virtual bool arm() noexcept = 0;
  // Turns notifications off.
  virtual void disarm() noexcept = 0;
  // The longest sleep, in nanoseconds, that this source allows once armed. A source without a
  // descriptor to wait on states a bound.
  [[nodiscard]] virtual std::uint64_t sleep_ns_max() const noexcept { return sleep_for_ever; }

  // Whether a visit may come late (by less than a millisecond with a thousand others beside it).
  // Not while something is under way here that poll() has to end; a source for which that begins
  // outside of poll() calls Reactor::stir.
  [[nodiscard]] virtual bool may_rest() const noexcept { return false; }

  // TSC cycles of work on this source since it was made, wherever it was owned: an estimate, from
  // the rounds that its reactors measured. Thread: any.
  [[nodiscard]] std::uint64_t busy_cycles() const noexcept { return busy_cycles_.get(); }

  // Whether the word that was looked at last says that a visit would find nothing. Thread: the
  // reactor.
  [[nodiscard]] bool nothing_new() const noexcept {
    return glance_.word != nullptr &&
           __atomic_load_n(glance_.word, __ATOMIC_RELAXED) == glance_.idle;
  }

 protected:
  // Said at the end of poll(): a visit would find nothing until that word is another, so that a
  // reactor with many sources looks at one word of each. It holds until the next visit, or until a
  // command has run here or a guest has lost memory: then every source is visited once.
  void look_at(Glance glance) noexcept { glance_ = glance; }

 private:
  friend class Reactor;
  bool visit() noexcept {
    glance_ = {};
    return poll();
  }
  Glance glance_;
  std::uint64_t worked_at_ = 0;  // TSC of the round in which poll() last found work
  Counter busy_cycles_;
};

}  // namespace millrace::base

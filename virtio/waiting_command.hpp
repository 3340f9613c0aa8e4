// A Command that stays on its reactor until something has happened there, which it looks at once a
// round, and then comes back. Control makes it; nothing is allocated on the reactor.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "base/command.hpp"
#include "base/poller.hpp"
#include "base/reactor.hpp"

namespace millrace::virtio {

class WaitingCommand : public base::Command, public base::Poller {
 public:
  // `done` runs on control.
  explicit WaitingCommand(std::function<void()> done) : done_{std::move(done)} {}

  base::Progress run(base::Reactor& reactor) noexcept final {
    if (step(reactor)) return base::Progress::done;
    reactor_ = &reactor;
    reactor.add(*this);
    return base::Progress::pending;
  }
  bool poll() noexcept final {
    if (!step(*reactor_)) return false;
    reactor_->remove(*this);
    reactor_->complete(*this);  // control may destroy this at once
    return true;
  }
  void disarm() noexcept final {}
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept final { return 1'000'000; }
  void done() final { done_(); }

 private:
  // Once a round, on the reactor, until it answers that it has happened. Where the reactor is about
  // to sleep, arm() is asked as any poller's: it only looks.
  [[nodiscard]] virtual bool step(base::Reactor& reactor) noexcept = 0;

  std::function<void()> done_;
  base::Reactor* reactor_ = nullptr;
};

// `begin(Reactor&)` once, then `ready()` until it is true, both on the reactor; then `done()`.
template <class Begin, class Ready>
[[nodiscard]] std::unique_ptr<base::Command> make_waiting_command(Begin begin, Ready ready,
                                                                  std::function<void()> done) {
  class Waiting final : public WaitingCommand {
   public:
    Waiting(Begin b, Ready r, std::function<void()> d)
        : WaitingCommand{std::move(d)}, begin_{std::move(b)}, ready_{std::move(r)} {}
    bool arm() noexcept override { return ready_(); }

   private:
    bool step(base::Reactor& reactor) noexcept override {
      if (!std::exchange(begun_, true)) begin_(reactor);
      return ready_();
    }
    Begin begin_;
    Ready ready_;
    bool begun_ = false;
  };
  return std::make_unique<Waiting>(std::move(begin), std::move(ready), std::move(done));
}

}  // namespace millrace::virtio

// A Command that begins something on a reactor and comes back when a condition holds there, which
// it looks at once a round. Control makes it; nothing is allocated on the reactor.
#pragma once

#include <memory>
#include <utility>

#include "base/command.hpp"
#include "base/poller.hpp"
#include "base/reactor.hpp"

namespace millrace::virtio {

// `begin(Reactor&)` and `ready()` run on the reactor, then `done()` on control.
template <class Begin, class Ready, class Done>
[[nodiscard]] std::unique_ptr<base::Command> make_waiting_command(Begin begin, Ready ready,
                                                                  Done done) {
  class Waiting final : public base::Command, public base::Poller {
   public:
    Waiting(Begin b, Ready r, Done d)
        : begin_{std::move(b)}, ready_{std::move(r)}, done_{std::move(d)} {}

    base::Progress run(base::Reactor& reactor) noexcept override {
      begin_(reactor);
      if (ready_()) return base::Progress::done;
      reactor_ = &reactor;
      reactor.add(*this);
      return base::Progress::pending;
    }
    bool poll() noexcept override {
      if (!ready_()) return false;
      reactor_->remove(*this);
      reactor_->complete(*this);  // control may destroy this at once
      return true;
    }
    bool arm() noexcept override { return ready_(); }
    void disarm() noexcept override {}
    [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override { return 1'000'000; }
    void done() override { done_(); }

   private:
    Begin begin_;
    Ready ready_;
    Done done_;
    base::Reactor* reactor_ = nullptr;
  };
  return std::make_unique<Waiting>(std::move(begin), std::move(ready), std::move(done));
}

}  // namespace millrace::virtio

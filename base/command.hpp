// Command: how control changes what a reactor owns. Control makes it, the reactor runs it, and
// control gets it back: nothing is allocated or freed on a reactor.
#pragma once

#include <memory>
#include <utility>

namespace millrace::base {

class Reactor;

enum class Progress {
  done,     // send it back now
  pending,  // the reactor keeps it and calls Reactor::complete() later
};

class Command {
 public:
  virtual ~Command() = default;
  // Thread: the reactor.
  virtual Progress run(Reactor& reactor) noexcept = 0;
  // Thread: control, after the reactor sent it back; it is destroyed afterwards.
  virtual void done() = 0;
};

// Command from two callables: `run(Reactor&)` on the reactor (returns void or Progress), then
// `done()` on the control thread.
template <class Run, class Done>
[[nodiscard]] std::unique_ptr<Command> make_command(Run run, Done done) {
  struct Both final : Command {
    Both(Run r, Done d) : run_{std::move(r)}, done_{std::move(d)} {}
    Progress run(Reactor& reactor) noexcept override {
      if constexpr (std::is_void_v<decltype(run_(reactor))>) {
        run_(reactor);
        return Progress::done;
      } else {
        return run_(reactor);
      }
    }
    void done() override { done_(); }
    Run run_;
    Done done_;
  };
  return std::make_unique<Both>(std::move(run), std::move(done));
}

}  // namespace millrace::base

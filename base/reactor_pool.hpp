// ReactorPool: control's side of all reactors: posts commands, gets them back, never blocks.
// Thread: control.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "base/reactor.hpp"

namespace millrace::base {

class ReactorPool {
 public:
  // Makes and starts the reactors.
  static Result<std::unique_ptr<ReactorPool>> make(EventLoop& loop,
                                                   const std::vector<ReactorConfig>& configs);
  ~ReactorPool();  // stops all reactors; commands still inside are given back (done() is called)

  [[nodiscard]] unsigned size() const { return static_cast<unsigned>(reactors_.size()); }
  [[nodiscard]] Reactor& at(unsigned index) { return *reactors_.at(index); }
  // The command's done() is called from the event loop once the reactor sent it back. Commands to
  // one reactor run in the order of their posts; there may be any number of them.
  void post(unsigned reactor, std::unique_ptr<Command> command);
  template <class Run, class Done>
  void post(unsigned reactor, Run run, Done done) {
    post(reactor, make_command(std::move(run), std::move(done)));
  }
  // The reactor with the least measured load, to a tenth of a core, and among those the one with
  // the fewest queues placed on it; counts one more there. One that was placed since the last
  // set_load() counts as a tenth of a core. See unplace().
  [[nodiscard]] unsigned place();
  // The one that place() would answer now; counts nothing.
  [[nodiscard]] unsigned next_place() const;
  // Counts a queue that somebody else chose the place of.
  void place_on(unsigned reactor);
  void unplace(unsigned reactor);
  // What was measured lately, as a share of the core's time: 0 to 1.
  void set_load(unsigned reactor, double load);
  [[nodiscard]] double load(unsigned reactor) const { return places_.at(reactor).load; }

 private:
  explicit ReactorPool(EventLoop& loop);
  void drain_done();
  void take_back(unsigned reactor);
  void retry_overflow();

  EventLoop& loop_;
  Fd done_event_;
  EventLoop::Watch done_watch_;
  EventLoop::Timer retry_;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::deque<std::unique_ptr<Command>>> overflow_;
  // Commands that a reactor holds: in its mailbox, pending, or on their way back.
  std::vector<std::unordered_map<Command*, std::unique_ptr<Command>>> inside_;
  struct Places {
    unsigned queues = 0;
    unsigned unmeasured = 0;  // of them placed since the load was measured
    double load = 0;
  };
  std::vector<Places> places_;  // by reactor
};

}  // namespace millrace::base

// Signals: SIGTERM, SIGINT and SIGHUP as events of the control thread's loop.
#pragma once

#include <functional>
#include <memory>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::daemon {

class Signals {
 public:
  // Blocks the signals in this thread and in all that it starts later: call it before any other
  // thread exists. `handler` gets the signal's number. `loop` must outlive it.
  static base::Result<std::unique_ptr<Signals>> make(base::EventLoop& loop,
                                                     std::function<void(int)> handler);

 private:
  Signals() = default;
  void read_all(const std::function<void(int)>& handler);

  base::Fd fd_;
  base::EventLoop::Watch watch_;
};

}  // namespace millrace::daemon

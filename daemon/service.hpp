// Service: the running daemon from the first socket to the last: start everything or nothing,
// serve, drain, end. Thread: control.
#pragma once

#include <functional>
#include <memory>

#include "base/event_loop.hpp"
#include "daemon/config.hpp"
#include "daemon/signals.hpp"
#include "daemon/topology.hpp"
#include "qmp/server.hpp"

namespace millrace::daemon {

class Service {
 public:
  // The configuration was checked. Returns the exit status when all is closed.
  static int run(const Config& config);

 private:
  Service() = default;
  bool start(const Config& config);
  void started(const base::Result<void>& result);
  void stop(const char* why);
  void on_signal(int signal);
  void fail(const std::string& line);

  base::EventLoop loop_;
  std::unique_ptr<Signals> signals_;
  std::unique_ptr<Topology> topology_;
  std::unique_ptr<qmp::Server> control_;
  base::EventLoop::Timer too_long_;
  bool stopping_ = false;
  int status_ = 0;
};

}  // namespace millrace::daemon

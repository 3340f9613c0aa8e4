// DeviceWorker: the one thread on which devices are closed, reset and opened again, one after the
// other. A device that does not answer keeps whoever closes it waiting, in its driver or in the
// kernel, for minutes; control goes on meanwhile. Whoever uses it sees to it that control makes and
// unmakes no device until it is idle: neither DPDK's nor VFIO's state is made for two.
// Thread: control.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>

#include "base/event_loop.hpp"
#include "base/side_thread.hpp"

namespace millrace::daemon {

class DeviceWorker {
 public:
  // `loop` must outlive it. What takes longer than `slow` is said in the log, and again after as
  // long. Errors: one line.
  static base::Result<std::unique_ptr<DeviceWorker>> make(
      base::EventLoop& loop, std::chrono::nanoseconds slow = std::chrono::seconds{10});
  // Waits for the work that is under way, however long it takes. What was not begun never is.
  ~DeviceWorker() = default;
  DeviceWorker(const DeviceWorker&) = delete;
  DeviceWorker& operator=(const DeviceWorker&) = delete;

  // Runs `work` on the thread when all before it is done, then what it answers on control. `what`
  // is for a person: "closes 0000:01:10.0 of uplink wire".
  void run(std::string what, base::SideThread::Work work);
  // What is under way; empty: nothing is.
  [[nodiscard]] std::string doing() const {
    return asked_.empty() ? std::string{} : asked_.front();
  }

 private:
  using Clock = std::chrono::steady_clock;

  DeviceWorker(base::EventLoop& loop, std::chrono::nanoseconds slow) : loop_{loop}, slow_{slow} {}
  void begin();

  base::EventLoop& loop_;
  const std::chrono::nanoseconds slow_;
  std::deque<std::string> asked_;  // the first one is under way
  Clock::time_point began_{};
  base::EventLoop::Timer reminder_;
  std::unique_ptr<base::SideThread> thread_;
};

}  // namespace millrace::daemon

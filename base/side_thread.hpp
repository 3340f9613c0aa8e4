// SideThread: has what may take long done on a thread of its own, one thing after another, for a
// thread that has an EventLoop and must not wait.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/event_loop.hpp"
#include "base/fd.hpp"

namespace millrace::base {

// Thread: the loop's.
class SideThread {
 public:
  using Told = std::function<void()>;
  using Work = std::function<Told()>;

  // `name`: at most 15 characters, as the kernel shows it. An error: no descriptor is to be had.
  static Result<std::unique_ptr<SideThread>> make(EventLoop& loop, const char* name);
  // Waits for the work that is under way. What was not begun never is, what was not told never is.
  ~SideThread();
  SideThread(const SideThread&) = delete;
  SideThread& operator=(const SideThread&) = delete;

  // Runs `work` on the thread, in the order of the calls, and what that answers on the loop, which
  // may destroy this. Neither may throw.
  void run(Work work);
  // How much of it was not told yet.
  [[nodiscard]] std::size_t pending() const { return pending_; }

 private:
  explicit SideThread(Fd event) : event_{std::move(event)} {}
  void work();
  void tell();

  const Fd event_;
  EventLoop::Watch watch_;
  std::size_t pending_ = 0;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  std::mutex mutex_;  // of what follows
  std::condition_variable asked_;
  std::deque<Work> asked_for_;
  std::deque<Told> done_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace millrace::base

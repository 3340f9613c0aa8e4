// EventLoop: the control thread's loop: descriptors, timers and deferred work. One thread.
// Handlers may allocate and may remove themselves or each other; none may block for long.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.hpp"

namespace millrace::base {

class EventLoop {
 public:
  using Handler = std::function<void(std::uint32_t events)>;  // EPOLLIN, EPOLLOUT, EPOLLHUP...

  // Stops watching when destroyed; may outlive the loop.
  class [[nodiscard]] Watch {
   public:
    Watch() = default;
    Watch(Watch&&) noexcept = default;
    Watch& operator=(Watch&& other) noexcept;
    ~Watch();
    // Changes the event mask. Needs a live watch.
    void modify(std::uint32_t events);
    void reset();
    [[nodiscard]] bool active() const { return entry_ != nullptr; }

   private:
    friend class EventLoop;
    struct Entry;
    explicit Watch(std::shared_ptr<Entry> entry) : entry_{std::move(entry)} {}
    std::shared_ptr<Entry> entry_;
  };

  // Cancels when destroyed.
  class [[nodiscard]] Timer {
   public:
    Timer() = default;
    Timer(Timer&&) noexcept = default;
    Timer& operator=(Timer&& other) noexcept;
    ~Timer();
    void reset();
    [[nodiscard]] bool active() const;

   private:
    friend class EventLoop;
    struct Entry;
    explicit Timer(std::shared_ptr<Entry> entry) : entry_{std::move(entry)} {}
    std::shared_ptr<Entry> entry_;
  };

  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Level triggered. `fd` must stay open while watched.
  Result<Watch> watch(int fd, std::uint32_t events, Handler handler);
  Timer after(std::chrono::nanoseconds delay, std::function<void()> run);
  Timer every(std::chrono::nanoseconds period, std::function<void()> run);
  // Runs `work` in the next iteration.
  void defer(std::function<void()> work);

  void run();   // until stop()
  void stop();  // from a handler
  // One iteration that waits at most `timeout`. For tests.
  void step(std::chrono::milliseconds timeout);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace millrace::base

// LinkWatch: tells when the host's network interfaces changed: came, went, up, down, a function's
// value (RTM_NEWLINK, RTM_DELLINK). Many changes soon after one another are told once.
//
// What changed is not told: messages can be lost in a flood (ENOBUFS counts as a change), so who is
// told looks at what matters to him. Thread: the loop's.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::sriov {

class LinkWatch {
 public:
  // `changed` is called no sooner than `calm` after a change. `loop` must outlive it.
  [[nodiscard]] static base::Result<std::unique_ptr<LinkWatch>> make(base::EventLoop& loop,
                                                                     std::chrono::milliseconds calm,
                                                                     std::function<void()> changed);
  LinkWatch(const LinkWatch&) = delete;
  LinkWatch& operator=(const LinkWatch&) = delete;
  ~LinkWatch() = default;

 private:
  LinkWatch(base::EventLoop& loop, base::Fd socket, std::chrono::milliseconds calm,
            std::function<void()> changed);
  void drain();

  base::EventLoop& loop_;
  base::Fd socket_;
  std::chrono::milliseconds calm_;
  std::function<void()> changed_;
  base::EventLoop::Watch watch_;
  base::EventLoop::Timer timer_;
};

}  // namespace millrace::sriov

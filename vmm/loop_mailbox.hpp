// LoopMailbox: brings work from any thread to the loop's.
//
// Thread: post() from any; made and destroyed on the loop's, where what was not run by then is
// dropped.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

class LoopMailbox {
 public:
  static base::Result<std::unique_ptr<LoopMailbox>> make(base::EventLoop& loop);
  LoopMailbox(const LoopMailbox&) = delete;
  LoopMailbox& operator=(const LoopMailbox&) = delete;

  // Runs `work` on the loop's thread, in the order of the calls. Never waits.
  void post(std::function<void()> work);

 private:
  LoopMailbox() = default;
  void run_all();

  base::Fd wake_;
  base::EventLoop::Watch watch_;
  std::mutex mutex_;
  std::vector<std::function<void()>> work_;
};

}  // namespace millrace::vmm

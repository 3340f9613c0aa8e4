#include "daemon/device_worker.hpp"

#include <utility>

#include "base/log.hpp"

namespace millrace::daemon {

base::Result<std::unique_ptr<DeviceWorker>> DeviceWorker::make(base::EventLoop& loop,
                                                               std::chrono::nanoseconds slow) {
  std::unique_ptr<DeviceWorker> out{new DeviceWorker{loop, slow}};
  auto thread = base::SideThread::make(loop, "devices");
  if (!thread) return base::Unexpected{thread.error()};
  out->thread_ = *std::move(thread);
  return out;
}

void DeviceWorker::run(std::string what, base::SideThread::Work work) {
  asked_.push_back(std::move(what));
  if (asked_.size() == 1) begin();
  thread_->run([this, work = std::move(work)]() -> base::SideThread::Told {
    return [this, told = work()] {
      asked_.pop_front();
      begin();
      told();
    };
  });
}

void DeviceWorker::begin() {
  if (asked_.empty()) return reminder_.reset();
  began_ = Clock::now();
  reminder_ = loop_.every(slow_, [this] {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - began_);
    spdlog::warn("{}: waits for the device, for {} s so far", asked_.front(), seconds.count());
  });
}

}  // namespace millrace::daemon

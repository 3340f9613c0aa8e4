#include "base/side_thread.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/error.hpp"
#include "base/quiet_thread.hpp"

namespace millrace::base {

Result<std::unique_ptr<SideThread>> SideThread::make(EventLoop& loop, const char* name) {
  Fd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!event) return fail_errno("cannot make an event descriptor");
  std::unique_ptr<SideThread> out{new SideThread{std::move(event)}};
  auto watch =
      loop.watch(out->event_.get(), EPOLLIN, [side = out.get()](std::uint32_t) { side->tell(); });
  if (!watch) return Unexpected{watch.error()};
  out->watch_ = *std::move(watch);
  out->thread_ = start_quiet_thread(name, [side = out.get()] { side->work(); });
  return out;
}

SideThread::~SideThread() {
  {
    const std::lock_guard lock{mutex_};
    stopping_ = true;
  }
  asked_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void SideThread::run(Work work) {
  ++pending_;
  {
    const std::lock_guard lock{mutex_};
    asked_for_.push_back(std::move(work));
  }
  asked_.notify_one();
}

void SideThread::work() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock{mutex_};
      asked_.wait(lock, [this] { return stopping_ || !asked_for_.empty(); });
      if (stopping_) return;
      work = std::move(asked_for_.front());
      asked_for_.pop_front();
    }
    auto told = work();
    {
      const std::lock_guard lock{mutex_};
      done_.push_back(std::move(told));
    }
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof(one));
  }
}

void SideThread::tell() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto read = ::read(event_.get(), &count, sizeof(count));
  std::deque<Told> done;
  {
    const std::lock_guard lock{mutex_};
    done.swap(done_);
  }
  const std::weak_ptr<bool> alive{alive_};
  for (const Told& told : done) {
    if (alive.expired()) return;
    --pending_;
    told();
  }
}

}  // namespace millrace::base

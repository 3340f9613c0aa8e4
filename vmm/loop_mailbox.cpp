#include "vmm/loop_mailbox.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <utility>

#include "base/error.hpp"

namespace millrace::vmm {

base::Result<std::unique_ptr<LoopMailbox>> LoopMailbox::make(base::EventLoop& loop) {
  std::unique_ptr<LoopMailbox> mailbox{new LoopMailbox};
  mailbox->wake_ = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!mailbox->wake_) return base::fail_errno("cannot make an eventfd");
  auto watch = loop.watch(mailbox->wake_.get(), EPOLLIN,
                          [seen = mailbox.get()](std::uint32_t) { seen->run_all(); });
  if (!watch) return base::Unexpected{watch.error()};
  mailbox->watch_ = *std::move(watch);
  return mailbox;
}

void LoopMailbox::post(std::function<void()> work) {
  const std::lock_guard lock{mutex_};
  work_.push_back(std::move(work));
  ::eventfd_write(wake_.get(), 1);
}

void LoopMailbox::run_all() {
  eventfd_t count = 0;
  ::eventfd_read(wake_.get(), &count);
  std::vector<std::function<void()>> now;
  {
    const std::lock_guard lock{mutex_};
    now.swap(work_);
  }
  for (const auto& work : now) work();
}

}  // namespace millrace::vmm

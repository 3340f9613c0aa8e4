#include "daemon/signals.hpp"

#include <sys/epoll.h>
#include <sys/signalfd.h>

#include <csignal>

#include "base/error.hpp"

namespace millrace::daemon {

base::Result<std::unique_ptr<Signals>> Signals::make(base::EventLoop& loop,
                                                     std::function<void(int)> handler) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a write past RLIMIT_FSIZE is a guest's EFBIG, not our end

  std::unique_ptr<Signals> self{new Signals};
  self->fd_ = base::Fd{::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)};
  if (!self->fd_) return base::fail_errno("cannot make a signalfd");
  auto watch = loop.watch(self->fd_.get(), EPOLLIN,
                          [self = self.get(), handler = std::move(handler)](std::uint32_t) {
                            self->read_all(handler);
                          });
  if (!watch) return base::Unexpected{watch.error()};
  self->watch_ = *std::move(watch);
  return self;
}

void Signals::read_all(const std::function<void(int)>& handler) {
  signalfd_siginfo info{};
  while (::read(fd_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    handler(static_cast<int>(info.ssi_signo));
  }
}

}  // namespace millrace::daemon

#include "blk/pinner.hpp"

#include <pthread.h>

#include <csignal>
#include <utility>

#include "base/log.hpp"

namespace millrace::blk {

Pinner::~Pinner() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock{mutex_};
    stopping_ = true;
    for (const Job& job : jobs_) job.memory->abandon();
  }
  asked_.notify_one();
  thread_.join();
}

std::shared_ptr<PinnedMemory> Pinner::pin(std::shared_ptr<const virtio::GuestMemory> memory) {
  auto pinned = std::make_shared<PinnedMemory>(std::move(memory), board_);
  ask({pinned, true});
  return pinned;
}

void Pinner::release(std::shared_ptr<PinnedMemory> memory) {
  if (memory == nullptr) return;
  memory->abandon();
  ask({std::move(memory), false});
}

void Pinner::ask(Job job) {
  {
    const std::lock_guard lock{mutex_};
    jobs_.push_back(std::move(job));
  }
  asked_.notify_one();
  if (thread_.joinable()) return;
  sigset_t all, before;
  ::sigfillset(&all);
  for (const int own : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) ::sigdelset(&all, own);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the thread that handles them
  thread_ = std::thread{[this] { run(); }};
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_setname_np(thread_.native_handle(), "pinner");
}

void Pinner::run() {
  for (;;) {
    Job job;
    {
      std::unique_lock lock{mutex_};
      asked_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    if (!job.pins) continue;  // the last holder lets go: here it is unpinned
    if (settle_) settle_();
    job.memory->pin();
    if (job.memory->state() == PinnedMemory::State::failed && !job.memory->abandoned()) {
      spdlog::warn("guest memory is not pinned: {}", job.memory->why());
    }
  }
}

}  // namespace millrace::blk

#include "blk/pinner.hpp"

#include <utility>

#include "base/log.hpp"
#include "base/quiet_thread.hpp"

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
  thread_ = base::start_quiet_thread("pinner", [this] { run(); });
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

#include "guest/reclaim_worker.hpp"

#include <utility>

#include "base/check.hpp"

namespace millrace::guest {

using virtio::Fault;

ReclaimWorker::ReclaimWorker(std::unique_ptr<virtio::Queue> queue, Reclaimer& reclaimer)
    : QueueWorker{std::move(queue)},
      reclaimer_{reclaimer},
      chain_{std::make_unique<virtio::Chain>()} {}

void ReclaimWorker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  job_.reactor = &reactor;
  disarm();
}

void ReclaimWorker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_ && is_idle());
  reactor_ = nullptr;
}

void ReclaimWorker::ask() noexcept {
  job_.memory = &queue().memory();
  reclaimer_.ask(job_);
}

bool ReclaimWorker::arm() noexcept {
  switch (job_.state.load(std::memory_order_acquire)) {
    case ReclaimJob::State::asked:
      return false;  // it wakes us
    case ReclaimJob::State::done:
      return true;
    case ReclaimJob::State::idle:
      break;
  }
  if (!takes()) return false;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void ReclaimWorker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

}  // namespace millrace::guest

#include "guest/balloon_worker.hpp"

#include "virtio/wire/balloon.hpp"

namespace millrace::guest {

using virtio::Fault;
using virtio::Take;

namespace {

constexpr std::uint64_t number_size = 4;  // bytes of a page's number

}  // namespace

BalloonWorker::BalloonWorker(std::unique_ptr<virtio::Queue> queue, BalloonQueue kind,
                             Reclaimer& reclaimer, BalloonCounters& counters,
                             ReclaimCounters& reclaimed)
    : QueueWorker{std::move(queue)},
      kind_{kind},
      reclaimer_{reclaimer},
      counters_{counters},
      chain_{std::make_unique<virtio::Chain>()} {
  job_.chain = chain_.get();
  job_.numbers = kind != BalloonQueue::report;
  job_.counters = &reclaimed;
  if (kind != BalloonQueue::deflate) reclaimer_.add(job_);
}

BalloonWorker::~BalloonWorker() {
  if (kind_ != BalloonQueue::deflate) reclaimer_.remove(job_);
}

void BalloonWorker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  job_.reactor = &reactor;
  disarm();
}

void BalloonWorker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_ && is_idle());
  reactor_ = nullptr;
}

bool BalloonWorker::poll() noexcept {
  const auto state = job_.state.load(std::memory_order_acquire);
  if (state == ReclaimJob::State::asked) return false;
  bool moved = false;
  queue().with_ring([&](auto& ring) {
    if (state == ReclaimJob::State::done) {
      ring.give(chain_->ticket(), 0);
      job_.state.store(ReclaimJob::State::idle, std::memory_order_release);
      moved = true;
    }
    for (unsigned taken = 0; takes() && taken < chains_a_visit; ++taken) {
      const Take took = ring.take(*chain_);
      if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
      if (took == Take::chain && !is_sound()) {
        queue().poison(Fault::request_malformed, reactor_->calls());
      }
      if (took != Take::chain || queue().fault() != Fault::none) break;
      moved = true;
      if (kind_ != BalloonQueue::deflate) return ask();
      // The pages are the guest's again already: a touch brings them back.
      counters_.bytes.add(chain_->readable_bytes() / number_size * virtio::wire::balloon_page_size);
      ring.give(chain_->ticket(), 0);
    }
  });
  queue().check_memory(reactor_->calls());
  if (moved) queue().publish_and_call(reactor_->calls());
  return moved;
}

// What *chain_ names is checked page by page; its shape is checked here.
bool BalloonWorker::is_sound() const noexcept {
  if (kind_ == BalloonQueue::report) return chain_->readable_bytes() == 0;
  return chain_->writable_bytes() == 0 &&
         chain_->readable_bytes() <= Reclaimer::numbers_max * number_size;
}

void BalloonWorker::ask() noexcept {
  counters_.bytes.add(kind_ == BalloonQueue::report ? chain_->writable_bytes()
                                                    : chain_->readable_bytes() / number_size *
                                                          virtio::wire::balloon_page_size);
  job_.memory = &queue().memory();
  reclaimer_.ask(job_);
}

bool BalloonWorker::arm() noexcept {
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

void BalloonWorker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

}  // namespace millrace::guest

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
    : ReclaimWorker{std::move(queue), reclaimer}, kind_{kind}, counters_{counters} {
  job_.chain = chain_.get();
  job_.numbers = kind != BalloonQueue::report;
  job_.counters = &reclaimed;
  if (kind != BalloonQueue::deflate) reclaimer_.add(job_);
}

BalloonWorker::~BalloonWorker() {
  if (kind_ != BalloonQueue::deflate) reclaimer_.remove(job_);
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
      if (kind_ != BalloonQueue::deflate) return count_and_ask();
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

void BalloonWorker::count_and_ask() noexcept {
  counters_.bytes.add(kind_ == BalloonQueue::report ? chain_->writable_bytes()
                                                    : chain_->readable_bytes() / number_size *
                                                          virtio::wire::balloon_page_size);
  ask();
}

}  // namespace millrace::guest

#include "guest/mem_worker.hpp"

#include <algorithm>

namespace millrace::guest {

using virtio::Fault;
using virtio::Take;

MemWorker::MemWorker(std::unique_ptr<virtio::Queue> queue, MemState& state, Reclaimer& reclaimer)
    : ReclaimWorker{std::move(queue), reclaimer}, state_{state} {
  job_.task = this;
  reclaimer_.add(job_);
}

MemWorker::~MemWorker() {
  reclaimer_.remove(job_);
}

bool MemWorker::poll() noexcept {
  const auto state = job_.state.load(std::memory_order_acquire);
  if (state == ReclaimJob::State::asked) return false;
  bool moved = false;
  queue().with_ring([&](auto& ring) {
    if (state == ReclaimJob::State::done) {
      answer();
      ring.give(chain_->ticket(), sizeof response_);
      job_.state.store(ReclaimJob::State::idle, std::memory_order_release);
      moved = true;
    }
    if (!takes()) return;
    const Take took = ring.take(*chain_);
    if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
    if (took != Take::chain) return;
    moved = true;
    if (!fetch()) return queue().poison(Fault::request_malformed, reactor_->calls());
    ask();
  });
  queue().check_memory(reactor_->calls());
  if (moved) queue().publish_and_call(reactor_->calls());
  return moved;
}

// Reads the request, where there is room for one and for its answer.
bool MemWorker::fetch() noexcept {
  if (chain_->writable_bytes() < sizeof response_) return false;
  return virtio::copy_from(chain_->readable(), 0,
                           std::as_writable_bytes(std::span{&request_, 1})) == sizeof request_;
}

void MemWorker::answer() noexcept {
  const auto segments = chain_->writable();
  virtio::copy_to(segments, 0, std::as_bytes(std::span{&response_, 1}));
  std::size_t left = sizeof response_;
  for (const auto& segment : segments) {
    const auto part = std::min<std::size_t>(segment.size, left);
    if (part == 0) break;
    queue().wrote(segment, static_cast<std::uint32_t>(part));
    left -= part;
  }
}

bool MemWorker::step(Reclaimer& reclaimer) {
  const auto response = state_.step(request_, *job_.memory, reclaimer);
  if (response) response_ = *response;
  return response.has_value();
}

}  // namespace millrace::guest

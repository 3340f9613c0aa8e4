#include "guest/pipe_out_worker.hpp"

#include <algorithm>
#include <utility>

namespace millrace::guest {

using virtio::Fault;
using virtio::Take;

PipeOutWorker::PipeOutWorker(std::unique_ptr<virtio::Queue> queue, Pipe& pipe, std::size_t message)
    : QueueWorker{std::move(queue)},
      pipe_{pipe},
      message_{message},
      chain_{std::make_unique<virtio::Chain>()} {}

void PipeOutWorker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  disarm();
}

void PipeOutWorker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_ && !held_);
  reactor_ = nullptr;
}

// A buffer that is half passed on lies in memory that shall go: its rest is lost.
bool PipeOutWorker::memory_released() noexcept {
  abandon_ = held_;
  return !held_;
}

bool PipeOutWorker::poll() noexcept {
  if (queue().fault() != Fault::none) held_ = false;
  if (!held_ && !takes()) return false;
  needed_ = 0;
  const auto before_visit = pipe_.bytes.get();
  unsigned given = 0;
  queue().with_ring([&](auto& ring) {
    if (held_ && !go_on(ring)) return;
    while (given < chains_a_visit && takes()) {
      const auto before = ring.mark();
      const Take took = ring.take(*chain_);
      if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
      if (took != Take::chain || !accept(ring, before)) break;
      ++given;
    }
  });
  queue().check_memory(reactor_->calls());
  const bool moved = queue().with_ring([](auto& ring) { return ring.pending() != 0; });
  if (moved) queue().publish_and_call(reactor_->calls());
  // For what is new only: who reads slowly is watched for by control itself.
  if (pipe_.bytes.get() != before_visit) pipe_.notifier.raise();
  return moved;
}

// What *chain_ holds. False: it has to wait, or the queue is poisoned.
template <class RingType>
bool PipeOutWorker::accept(RingType& ring, virtio::Mark before) noexcept {
  const std::size_t bytes = message_ != 0 ? message_ : chain_->readable_bytes();
  if (chain_->writable_bytes() != 0 || chain_->readable_bytes() < bytes) {
    queue().poison(Fault::request_malformed, reactor_->calls());
    return false;
  }
  const Flow flow = pipe_.flow.load(std::memory_order_acquire);
  const std::size_t room = flow == Flow::drop ? 0 : pipe_.ring.room();
  if (flow != Flow::hold || bytes <= room) {
    give(ring, bytes - push(0, std::min(bytes, room)));
    return true;
  }
  if (bytes <= pipe_.ring.capacity()) {
    ring.rewind(before);
    needed_ = bytes;
    return false;
  }
  held_ = true;
  offset_ = push(0, room);
  return false;
}

// The rest of a buffer that is larger than the pipe. True: it is done with.
template <class RingType>
bool PipeOutWorker::go_on(RingType& ring) noexcept {
  const auto rest = static_cast<std::size_t>(chain_->readable_bytes()) - offset_;
  const Flow flow = pipe_.flow.load(std::memory_order_acquire);
  const bool end = quiescing_ || abandon_ || flow == Flow::drop;
  const std::size_t count = push(offset_, std::min(rest, end ? 0 : pipe_.ring.room()));
  offset_ += count;
  if (count != rest && !end) return false;
  give(ring, rest - count);
  held_ = abandon_ = false;
  return true;
}

template <class RingType>
void PipeOutWorker::give(RingType& ring, std::size_t dropped) noexcept {
  ring.give(chain_->ticket(), 0);
  if (dropped != 0) pipe_.dropped.add(dropped);
}

// `count` bytes, for which there is room. Answers `count`.
std::size_t PipeOutWorker::push(std::size_t offset, std::size_t count) noexcept {
  if (count == 0) return 0;
  const auto pieces = pipe_.ring.free_pieces();
  const auto first = std::min(count, pieces[0].size());
  virtio::copy_from(chain_->readable(), offset, pieces[0].first(first));
  virtio::copy_from(chain_->readable(), offset + first, pieces[1].first(count - first));
  pipe_.ring.pushed(count);
  pipe_.bytes.add(count);
  return count;
}

// Room in the pipe is what a waiting buffer needs, and control wakes us when it made some.
bool PipeOutWorker::arm() noexcept {
  const bool flows = pipe_.flow.load(std::memory_order_acquire) != Flow::hold;
  if (held_) return flows || quiescing_ || abandon_ || pipe_.ring.room() != 0;
  if (!takes()) return false;
  if (needed_ != 0) return flows || pipe_.ring.room() >= needed_;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void PipeOutWorker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

}  // namespace millrace::guest

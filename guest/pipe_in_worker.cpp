#include "guest/pipe_in_worker.hpp"

#include <algorithm>
#include <array>

namespace millrace::guest {

using virtio::Fault;
using virtio::Take;

PipeInWorker::PipeInWorker(std::unique_ptr<virtio::Queue> queue, Pipe& pipe, bool framed)
    : QueueWorker{std::move(queue)},
      pipe_{pipe},
      framed_{framed},
      chain_{std::make_unique<virtio::Chain>()} {}

void PipeInWorker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  disarm();
}

void PipeInWorker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_);
  reactor_ = nullptr;
}

bool PipeInWorker::poll() noexcept {
  if (!takes()) return false;
  // In this order: whoever sees bytes sees the flow that they came under.
  const std::size_t size = pipe_.ring.size();
  if (size == 0) return false;
  if (pipe_.flow.load(std::memory_order_acquire) == Flow::drop) {
    pipe_.ring.popped(size);
    pipe_.dropped.add(size);
    pipe_.notifier.raise();
    return true;
  }
  const bool moved = fill();
  queue().check_memory(reactor_->calls());
  if (!moved) return false;
  queue().publish_and_call(reactor_->calls());
  pipe_.notifier.raise();
  return true;
}

bool PipeInWorker::fill() noexcept {
  unsigned given = 0;
  queue().with_ring([&](auto& ring) {
    while (given < chains_a_visit && pipe_.ring.size() != 0) {
      const Take took = ring.take(*chain_);
      if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
      if (took != Take::chain) break;
      const std::size_t count = next_size();
      if (count == 0) {
        queue().poison(Fault::request_malformed, reactor_->calls());
        break;
      }
      put(count);
      ring.give(chain_->ticket(), static_cast<std::uint32_t>(count));
      ++given;
    }
  });
  return given != 0;
}

std::size_t PipeInWorker::next_size() noexcept {
  const std::size_t room = chain_->writable_bytes();
  if (chain_->readable_bytes() != 0) return 0;
  if (!framed_) return std::min(pipe_.ring.size(), room);
  FrameHeader header{};
  CHECK(pipe_.ring.peek(std::as_writable_bytes(std::span{&header, 1})));
  if (header.bytes > room) return 0;
  pipe_.ring.popped(sizeof header);
  return header.bytes;
}

void PipeInWorker::put(std::size_t count) noexcept {
  const auto pieces = pipe_.ring.pieces();
  const auto first = std::min(count, pieces[0].size());
  virtio::copy_to(chain_->writable(), 0, pieces[0].first(first));
  virtio::copy_to(chain_->writable(), first, pieces[1].first(count - first));
  pipe_.ring.popped(count);
  pipe_.bytes.add(count);
  std::size_t left = count;
  for (const auto& segment : chain_->writable()) {
    const auto part = std::min<std::size_t>(segment.size, left);
    if (part == 0) break;
    queue().wrote(segment, static_cast<std::uint32_t>(part));
    left -= part;
  }
}

// Without bytes a kick is no news, and whoever brings some wakes us.
bool PipeInWorker::arm() noexcept {
  if (!takes() || pipe_.ring.size() == 0) return false;
  if (pipe_.flow.load(std::memory_order_acquire) == Flow::drop) return true;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void PipeInWorker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

}  // namespace millrace::guest

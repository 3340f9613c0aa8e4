#include "guest/stats_worker.hpp"

#include <cstring>

#include "base/endian.hpp"

namespace millrace::guest {

using virtio::Fault;
using virtio::Take;

StatsWorker::StatsWorker(std::unique_ptr<virtio::Queue> queue, BalloonStats& stats)
    : QueueWorker{std::move(queue)}, stats_{stats}, chain_{std::make_unique<virtio::Chain>()} {}

void StatsWorker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  disarm();
}

void StatsWorker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_ && !held_);
  reactor_ = nullptr;
}

bool StatsWorker::poll() noexcept {
  if (queue().fault() != Fault::none) held_ = false;
  bool moved = false;
  queue().with_ring([&](auto& ring) {
    if (held_ && quiescing_) {
      ring.rewind(before_);  // whoever comes next finds it
      held_ = false;
      return;
    }
    if (held_ && stats_.wanted.load(std::memory_order_relaxed)) {
      stats_.wanted.store(false, std::memory_order_relaxed);
      ring.give(ticket_, 0);
      held_ = false;
      moved = true;
    }
    if (held_ || !takes()) return;
    const auto before = ring.mark();
    const Take took = ring.take(*chain_);
    if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
    if (took != Take::chain) return;
    read();
    held_ = true;
    ticket_ = chain_->ticket();
    before_ = before;
  });
  queue().check_memory(reactor_->calls());
  if (moved) queue().publish_and_call(reactor_->calls());
  return moved;
}

void StatsWorker::read() noexcept {
  namespace wire = virtio::wire;
  std::array<std::byte, entries_max * wire::balloon_stat_size> bytes;
  const auto got = virtio::copy_from(chain_->readable(), 0, bytes);
  for (std::size_t at = 0; at + wire::balloon_stat_size <= got; at += wire::balloon_stat_size) {
    base::le16 tag;
    base::le64 value;
    std::memcpy(&tag, bytes.data() + at, sizeof tag);
    std::memcpy(&value, bytes.data() + at + wire::balloon_stat_value_at, sizeof value);
    if (tag.host() < stats_.values.size()) stats_.values[tag.host()].set(value.host());
  }
  stats_.updates.add();
}

bool StatsWorker::arm() noexcept {
  if (held_) return quiescing_ || stats_.wanted.load(std::memory_order_relaxed);
  if (!takes()) return false;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void StatsWorker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

}  // namespace millrace::guest

#include "blk/worker.hpp"

#include <algorithm>

#include "base/clock.hpp"
#include "blk/limits.hpp"

namespace millrace::blk {

using virtio::Fault;
using virtio::Take;
using virtio::wire::BlkStatus;

namespace {
constexpr unsigned ahead = 8;  // requests whose first lines are asked for at once
}  // namespace

unsigned Worker::depth(std::uint32_t size) {
  return std::clamp<unsigned>(size, 1, limits::requests_max);
}

Worker::Worker(std::unique_ptr<virtio::Queue> queue, const DiskState& disk, unsigned segments,
               std::unique_ptr<Channel> channel, QueueStatistics& statistics)
    : QueueWorker{std::move(queue)},
      disk_{disk},
      channel_{std::move(channel)},
      statistics_{statistics},
      pool_{depth(this->queue().size()), segments + limits::segments_spare,
            std::max(disk.rules.discard_ranges_max, disk.rules.zero_ranges_max)},
      ranges_(std::max(disk.rules.discard_ranges_max, disk.rules.zero_ranges_max)),
      chain_{std::make_unique<virtio::Chain>()},
      rules_{disk.rules},
      write_through_{disk.write_through.load(std::memory_order_relaxed)} {}

void Worker::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  quiescing_ = false;
  channel_->attached(reactor);
  disarm();
}

void Worker::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_ && pool_.in_flight() == 0);
  channel_->detached(reactor);
  reactor_ = nullptr;
}

bool Worker::poll() noexcept {
  // Give before take: what is finished frees room. Once more at the end, for a backend that is done
  // within the visit.
  bool busy = finish();
  glance_ = {};
  IoList burst;
  if (takes() && take(burst)) busy = true;
  if (!burst.empty()) channel_->submit(burst);
  if (channel_->pending() && finish()) busy = true;
  const bool lost = queue().check_memory(reactor_->calls());
  if (!lost && pool_.in_flight() == 0 && !channel_->pending()) look_at(glance_);
  if (!busy) return false;
  queue().publish_and_call(reactor_->calls());
  note_in_flight();
  return true;
}

void Worker::come_near() noexcept {
  if (takes()) queue().with_ring([](auto& ring) { ring.look(ahead); });
}

bool Worker::arm() noexcept {
  if (channel_->pending()) return true;
  // Without room for another request a kick is no news; a completion will wake us.
  if (!takes() || pool_.exhausted()) return false;
  return queue().with_ring([](auto& ring) { return ring.arm(); });
}

void Worker::disarm() noexcept {
  if (queue().fault() != Fault::none) return;
  queue().with_ring([](auto& ring) { ring.disarm(); });
}

// After the request was seen: what the guest was told before it made the request holds for it.
void Worker::note_disk() noexcept {
  rules_.bytes = disk_.bytes.load(std::memory_order_relaxed);
  const bool now = disk_.write_through.load(std::memory_order_relaxed);
  // Earlier writes may still be in a cache; the first write through takes them along.
  if (now && !write_through_) flush_due_ = true;
  write_through_ = now;
}

bool Worker::take(IoList& burst) noexcept {
  unsigned taken = 0;
  std::uint64_t now = 0;
  queue().with_ring([&](auto& ring) {
    ring.look(limits::take_budget);
    while (taken < limits::take_budget && !pool_.exhausted()) {
      // Header and status lie in one line as drivers have them: it is wanted to be written.
      if (taken % ahead == 0) ring.prefetch_to_write(ahead, true);
      const Take took = ring.take(*chain_);
      if (took == Take::fault) queue().poison(ring.fault(), reactor_->calls());
      if (took == Take::empty) glance_ = ring.glance();
      if (took != Take::chain) break;
      if (++taken == 1) now = base::cycles();
      note_disk();
      if (!accept(ring, burst, now)) break;
    }
  });
  return taken > 0;
}

template <class RingType>
bool Worker::accept(RingType& ring, IoList& burst, std::uint64_t now) noexcept {
  const Parsed parsed = parse(*chain_, rules_, ranges_);
  if (const auto* reject = std::get_if<Reject>(&parsed)) {
    give(ring, answer(*reject, queue()), now, now);
  } else if (const auto* identify = std::get_if<Identify>(&parsed)) {
    give(ring, answer(*identify, *chain_, disk_.id, queue()), now, now);
  } else if (const auto* request = std::get_if<Request>(&parsed)) {
    const bool write = request->operation == Operation::write;
    const bool zeroes = request->operation == Operation::write_zeroes;
    const bool flush_after = (zeroes && write_through_) || (write && flush_due_);
    InFlight* const started =
        pool_.begin(*request, *chain_, queue().memory(), write_through_, flush_after, now);
    if (started == nullptr) {
      const Reject scattered{BlkStatus::io_error, request->status, request->ticket};
      give(ring, answer(scattered, queue()), now, now);
      return true;
    }
    if (flush_after) flush_due_ = false;
    burst.push(*started);
  } else {
    queue().poison(Fault::request_malformed, reactor_->calls());
    return false;
  }
  return true;
}

template <class RingType>
void Worker::give(RingType& ring, const Completed& completed, std::uint64_t taken_cycles,
                  std::uint64_t now) noexcept {
  ring.give(completed.ticket, completed.written);
  if (completed.status == BlkStatus::io_error) statistics_.io_errors.add();
  if (completed.status == BlkStatus::unsupported) statistics_.unsupported.add();
  if (now > taken_cycles) statistics_.latency.add(base::cycles_to_ns(now - taken_cycles));
}

bool Worker::finish() noexcept {
  IoList done, again;
  const bool busy = channel_->poll(done);
  if (done.empty()) return busy;
  const std::uint64_t now = base::cycles();
  queue().with_ring([&](auto& ring) {
    while (Io* const io = done.pop()) {
      auto& request = static_cast<InFlight&>(*io);
      if (request.next_step()) {
        again.push(request);
        continue;
      }
      if (request.memory_refused()) look_for_lost_memory(request);
      const Completed completed = request.finish(queue());
      count(request, completed.status);
      // A flush that a write carried may be what failed: the next one carries it again.
      if (write_through_ && completed.status != BlkStatus::ok) flush_due_ = true;
      give(ring, completed, request.taken_cycles(), now);
      pool_.end(request);
    }
  });
  if (!again.empty()) channel_->submit(again);
  return true;
}

void Worker::count(const InFlight& request, BlkStatus status) noexcept {
  const bool moved = status == BlkStatus::ok;
  switch (request.request()) {
    case Operation::read:
      statistics_.read_requests.add();
      if (moved) statistics_.read_bytes.add(request.request_bytes());
      break;
    case Operation::write:
      statistics_.write_requests.add();
      if (moved) statistics_.write_bytes.add(request.request_bytes());
      break;
    case Operation::flush:
      statistics_.flush_requests.add();
      break;
    case Operation::discard:
      statistics_.discard_requests.add();
      break;
    case Operation::write_zeroes:
      statistics_.zero_requests.add();
      break;
  }
}

// The kernel could not reach the guest's memory. Where its front-end took the pages away, a touch
// of ours notes that in the mapping, and the end of the visit poisons the queue.
void Worker::look_for_lost_memory(const InFlight& request) noexcept {
  if (!request.memory()->faulted()) request.touch_memory();
}

void Worker::note_in_flight() noexcept {
  statistics_.in_flight.set(pool_.in_flight());
  const InFlight* const oldest = pool_.oldest();
  statistics_.oldest_cycles.set(oldest == nullptr ? 0 : oldest->taken_cycles());
}

}  // namespace millrace::blk

#include "virtio/queue.hpp"

#include <string>
#include <utility>

#include "virtio/features.hpp"
#include "virtio/inflight.hpp"

namespace millrace::virtio {

base::Result<std::unique_ptr<Queue>> Queue::open(QueueStart start) {
  std::unique_ptr<Queue> queue{new Queue};
  queue->index_ = start.index;
  queue->size_ = start.ring.size;
  queue->features_ = start.ring.features;
  queue->enabled_ = start.enabled;
  queue->memory_ = std::move(start.memory);
  queue->memory_faults_seen_ = base::memory_fault_count();
  queue->log_ = std::move(start.log);
  queue->inflight_ = std::move(start.inflight);
  queue->kick_ = std::move(start.kick);
  queue->call_ = std::move(start.call);
  queue->error_ = std::move(start.error);
  const auto name = "queue " + std::to_string(start.index);
  if (queue->memory_ == nullptr) return base::fail(name + " has no memory");
  if (queue->lost_memory()) {
    return base::fail(name + " cannot start: " + name_of(Fault::memory_lost));
  }
  if (const auto opened = queue->open_ring(start.ring); !opened) {
    return base::fail(name + " cannot start: " + name_of(opened.error()));
  }
  queue->with_ring([&queue](auto& ring) {
    ring.set_log(queue->log_.get());
    ring.count_arms(&queue->counters.kicks_armed);
  });
  return queue;
}

base::Result<void, Fault> Queue::open_ring(const RingSetup& setup) {
  if ((setup.features & feature::ring_packed) == 0) {
    wire::InflightSplit* part = nullptr;
    if (inflight_ != nullptr) {
      part = inflight_->split(index_, setup.size);
      if (part == nullptr) return base::Unexpected{Fault::inflight_bad};
    }
    auto ring = SplitRing::open(setup, *memory_, part);
    if (!ring) return base::Unexpected{ring.error()};
    ring_.emplace<SplitRing>(std::move(*ring));
    return {};
  }
  wire::InflightPacked* part = nullptr;
  if (inflight_ != nullptr) {
    part = inflight_->packed(index_, setup.size);
    if (part == nullptr) return base::Unexpected{Fault::inflight_bad};
  }
  auto ring = PackedRing::open(setup, *memory_, part);
  if (!ring) return base::Unexpected{ring.error()};
  ring_.emplace<PackedRing>(std::move(*ring));
  return {};
}

void Queue::publish_and_call(base::CallSignal& calls) noexcept {
  with_ring([&](auto& ring) {
    counters.chains.set(ring.taken());
    if (ring.pending() == 0) return;
    ring.show();
    calls.ask_later(*this);
  });
}

void Queue::ask(base::CallSignal& calls) noexcept {
  if (call_.valid() && with_ring([](auto& ring) { return ring.wants_call(); })) return call(calls);
  counters.calls_suppressed.add();
}

bool Queue::publish() noexcept {
  return with_ring([this](auto& ring) {
    counters.chains.set(ring.taken());
    if (ring.pending() == 0) return false;
    if (ring.publish() && call_.valid()) return true;
    counters.calls_suppressed.add();
    return false;
  });
}

void Queue::call(base::CallSignal& calls) noexcept {
  if (!call_.valid()) return;
  counters.calls.add();
  calls.signal(call_.get());
}

Fault Queue::fault() const noexcept {
  if (poison_ != Fault::none) return poison_;
  return std::visit([](const auto& ring) { return ring.fault(); }, ring_);
}

std::uint32_t Queue::position() const noexcept {
  return std::visit([](const auto& ring) { return ring.position(); }, ring_);
}

void Queue::poison(Fault fault, base::CallSignal& calls) noexcept {
  if (poison_ != Fault::none) return;
  CHECK(fault != Fault::none);
  // What stands in for lost memory reads as nonsense; the loss is what happened.
  if (lost_memory()) fault = Fault::memory_lost;
  poison_ = fault;
  with_ring([fault](auto& ring) { ring.poison(fault); });
  counters.faults.set(1);
  if (error_.valid()) calls.signal(error_.get());
  if (fault_notice_ != nullptr) {
    CHECK(reactor_ != nullptr);
    fault_notice_->fault = fault;
    reactor_->complete(*std::exchange(fault_notice_, nullptr));
  }
}

bool Queue::lost_memory() const noexcept {
  return memory_->faulted() || (ring_memory_ != nullptr && ring_memory_->faulted()) ||
         (inflight_ != nullptr && inflight_->faulted());
}

bool Queue::find_lost_memory(base::CallSignal& calls) noexcept {
  const bool lost = lost_memory();
  if (lost) poison(Fault::memory_lost, calls);
  return lost;
}

// Where the ring is not in the new memory, its pointers into the old one must stay good until the
// queue stops: what was taken is still given back there.
void Queue::swap_memory(std::shared_ptr<const GuestMemory>& memory,
                        base::CallSignal& calls) noexcept {
  const bool stuck = ring_memory_ != nullptr;
  const bool moved =
      !stuck && with_ring([&memory](auto& ring) { return ring.set_memory(*memory); });
  std::swap(memory_, memory);
  if (stuck || moved) return;
  ring_memory_.swap(memory);
  poison(with_ring([](auto& ring) { return ring.fault(); }), calls);
}

void Queue::swap_log(std::shared_ptr<DirtyLog>& log) noexcept {
  with_ring([&log](auto& ring) { ring.set_log(log.get()); });
  std::swap(log_, log);
}

}  // namespace millrace::virtio

// DeviceBase: how a queue goes from one reactor to another while its driver uses it. Ring, memory,
// log, descriptors and counters stay as they are; only who looks at them changes. Control sends a
// Departure to the old owner and an Arrival to the new one at once, so that a move takes as long as
// their rounds and not as control's.
#include <string>

#include "virtio/device_slot.hpp"

namespace millrace::virtio {

// Kicks are watched before the first look at the ring: one that came while nobody watched is found
// there. A descriptor that cannot be waited on is as good as none: the queue is polled.
void DeviceBase::put_on(QueueWorker& worker, base::Reactor& reactor, base::Fd& refused) noexcept {
  Queue& queue = worker.queue();
  queue.reactor_ = &reactor;
  if (queue.kick_.valid() && !reactor.watch(queue.kick_.get())) std::swap(queue.kick_, refused);
  reactor.add(worker);
  worker.attached(reactor);
}

void DeviceBase::take_off(QueueWorker& worker, base::Reactor& reactor) noexcept {
  Queue& queue = worker.queue();
  queue.publish_and_call(reactor.calls());
  if (queue.kick_.valid()) reactor.unwatch(queue.kick_.get());
  reactor.remove(worker);
  worker.detached(reactor);
  reactor.calls().flush();  // before anybody closes a descriptor, or calls again
  queue.reactor_ = nullptr;
  if (queue.fault_notice_ == nullptr) return;
  reactor.complete(*std::exchange(queue.fault_notice_, nullptr));
}

bool DeviceBase::Departure::step(base::Reactor& reactor) noexcept {
  QueueWorker& worker = baton_->worker;
  base::Handover* const handover = baton_->handover.get();
  if (stage_ == Stage::waiting) {
    if (handover != nullptr && !handover->may_pause()) return false;
    worker.quiesce();
    stage_ = Stage::draining;
  }
  if (stage_ == Stage::draining) {
    if (!worker.drained()) return false;
    stage_ = Stage::leaving;
  }
  if (handover != nullptr && !handover->may_leave()) return false;
  take_off(worker, reactor);
  baton_->free.store(true, std::memory_order_release);
  baton_->to.wake();
  return true;
}

bool DeviceBase::Arrival::step(base::Reactor& reactor) noexcept {
  if (!baton_->free.load(std::memory_order_acquire)) return false;
  put_on(baton_->worker, reactor, baton_->refused);
  if (baton_->handover != nullptr) baton_->handover->arrived();
  return true;
}

void DeviceBase::move_queue(unsigned index, unsigned reactor, Done done) {
  if (index >= slots_.size()) {
    return answer(std::move(done), base::fail("there is no queue " + std::to_string(index)));
  }
  if (reactor >= pool_.size()) {
    return answer(std::move(done), base::fail("there is no reactor " + std::to_string(reactor)));
  }
  enqueue(index,
          [this, index, reactor, done = std::move(done)] { run_move(index, reactor, done); });
}

void DeviceBase::run_move(unsigned index, unsigned reactor, const Done& done) {
  Slot& slot = *slots_[index];
  const auto end = [&](base::Result<void> result) {
    finish(index);
    answer(done, std::move(result));
  };
  const auto name = "queue " + std::to_string(index);
  if (slot.worker == nullptr) return end(base::fail(name + " is not started"));
  if (slot.reactor == reactor) return end({});
  if (!slot.worker->can_move()) return end(base::fail(name + " stays where it was started"));
  worker_moving(*slot.worker, slot.reactor, reactor,
                [this, index, reactor, done](std::shared_ptr<base::Handover> handover) {
                  hand_over(index, reactor, std::move(handover), done);
                });
}

void DeviceBase::hand_over(unsigned index, unsigned reactor,
                           std::shared_ptr<base::Handover> handover, const Done& done) {
  Slot& slot = *slots_[index];
  const auto baton = std::make_shared<Baton>(*slot.worker, std::move(handover), pool_.at(reactor));
  // Whichever comes back last goes on.
  const auto left = std::make_shared<unsigned>(2);
  const auto back = [this, index, reactor, done, left] {
    if (--*left == 0) handed_over(index, reactor, done);
  };
  pool_.post(slot.reactor, std::make_unique<Departure>(baton, back));
  pool_.post(reactor, std::make_unique<Arrival>(baton, back));
}

void DeviceBase::handed_over(unsigned index, unsigned reactor, const Done& done) {
  Slot& slot = *slots_[index];
  pool_.unplace(slot.reactor);
  pool_.place_on(reactor);
  slot.reactor = reactor;
  if (slot.fault == Fault::none) {
    pool_.post(reactor, std::make_unique<Notice>(*this, index, *slot.worker));
  }
  worker_moved(*slot.worker, reactor, [this, index, done] {
    finish(index);
    done({});
  });
}

void DeviceBase::pin_queue(unsigned index, std::optional<unsigned> reactor) {
  CHECK(!reactor || *reactor < pool_.size());
  slots_.at(index)->pin = reactor;
}

}  // namespace millrace::virtio

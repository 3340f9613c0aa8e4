#include "virtio/device_base.hpp"

#include <utility>

#include "virtio/device_slot.hpp"
#include "virtio/waiting_command.hpp"

namespace millrace::virtio {

// Calls `done` once, when everyone who held it has let go.
class DeviceBase::Join {
 public:
  explicit Join(std::function<void()> done) : done_{std::move(done)} {}
  Join(const Join&) = delete;
  Join& operator=(const Join&) = delete;
  ~Join() { done_(); }

 private:
  std::function<void()> done_;
};

DeviceBase::DeviceBase(std::string name, unsigned queues, base::ReactorPool& pool)
    : name_{std::move(name)}, pool_{pool} {
  slots_.resize(queues);
  for (auto& slot : slots_) slot = std::make_unique<Slot>();
}

DeviceBase::~DeviceBase() {
  for (const auto& slot : slots_) CHECK(slot->worker == nullptr && slot->operations.empty());
}

void DeviceBase::enqueue(unsigned index, std::function<void()> operation) {
  auto& operations = slots_[index]->operations;
  operations.push_back(std::move(operation));
  if (operations.size() > 1) return;
  const auto first = std::exchange(operations.front(), {});
  first();
}

// Before the answer is given: whoever gets it may ask for the next thing, or destroy the device.
void DeviceBase::finish(unsigned index) {
  auto& operations = slots_[index]->operations;
  operations.pop_front();
  if (operations.empty()) return;
  const auto next = std::exchange(operations.front(), {});
  next();
}

// From the event loop and never from inside the call: by way of a reactor that has nothing to do.
void DeviceBase::answer(Done done, base::Result<void> result) {
  pool_.post(
      0, [](base::Reactor&) {},
      [done = std::move(done), result = std::move(result)] { done(result); });
}

// Runs `run(Reactor&, QueueWorker&)` on the reactor of a started queue, then `then` on control,
// which must call finish().
template <class Run, class Then>
void DeviceBase::on_reactor(unsigned index, Done done, Run run, Then then) {
  if (index >= slots_.size()) {
    return answer(std::move(done), base::fail("there is no queue " + std::to_string(index)));
  }
  enqueue(
      index, [this, index, done = std::move(done), run = std::move(run), then = std::move(then)] {
        Slot& slot = *slots_[index];
        if (slot.worker == nullptr) {
          finish(index);
          return answer(done, base::fail("queue " + std::to_string(index) + " is not started"));
        }
        pool_.post(
            slot.reactor,
            [run, worker = slot.worker.get()](base::Reactor& reactor) { run(reactor, *worker); },
            [done, then] { then(done); });
      });
}

void DeviceBase::start_queue(QueueStart start, Done done) {
  const unsigned index = start.index;
  if (index >= slots_.size()) {
    return answer(std::move(done), base::fail("there is no queue " + std::to_string(index)));
  }
  enqueue(index,
          [this, done = std::move(done), shared = std::make_shared<QueueStart>(std::move(start))] {
            run_start(shared, done);
          });
}

void DeviceBase::run_start(const std::shared_ptr<QueueStart>& start, const Done& done) {
  const unsigned index = start->index;
  Slot& slot = *slots_[index];
  const auto refuse = [&](std::string why) {
    finish(index);
    answer(done, base::fail(std::move(why)));
  };
  const auto name = "queue " + std::to_string(index);
  if (slot.worker != nullptr) return refuse(name + " is started already");
  auto queue = Queue::open(std::move(*start));
  if (!queue) return refuse(queue.error().message);
  slot.worker = make_worker(*std::move(queue));
  if (slot.worker == nullptr) return refuse(name + " cannot start: the device has no means");
  slot.reactor = slot.pin ? *slot.pin : pool_.place();
  if (slot.pin) pool_.place_on(*slot.pin);
  slot.fault = Fault::none;
  QueueWorker& worker = *slot.worker;

  const auto attach = [&worker, refused = std::make_shared<base::Fd>()](base::Reactor& reactor) {
    put_on(worker, reactor, *refused);
    // A predecessor may have published and died before it called.
    const Queue& mine = worker.queue();
    if (mine.call_.valid()) reactor.calls().signal(mine.call_.get());
  };
  pool_.post(slot.reactor, attach, [this, index, done] {
    Slot& mine = *slots_[index];
    mine.attached = true;
    mine.enabled = mine.worker->queue().enabled();
    worker_started(*mine.worker, mine.reactor, mine.enabled, [this, index, done] {
      finish(index);
      done({});
    });
  });
  pool_.post(slot.reactor, std::make_unique<Notice>(*this, index, worker));
}

void DeviceBase::noticed(unsigned index, Fault fault) {
  if (fault == Fault::none) return;
  slots_[index]->fault = fault;
  if (fault_hook_) fault_hook_(index, fault);
}

void DeviceBase::stop_queue(unsigned index, Stopped stopped) {
  if (index >= slots_.size()) {
    return answer([stopped = std::move(stopped)](const auto&) { stopped(0); }, {});
  }
  enqueue(index, [this, index, stopped = std::move(stopped)] { run_stop(index, stopped); });
}

void DeviceBase::run_stop(unsigned index, const Stopped& stopped) {
  Slot& slot = *slots_[index];
  if (slot.worker == nullptr) {
    finish(index);
    return answer([stopped](const auto&) { stopped(0); }, {});
  }
  worker_stopping(*slot.worker, slot.reactor, [this, index, stopped] { drain(index, stopped); });
}

void DeviceBase::drain(unsigned index, const Stopped& stopped) {
  Slot& slot = *slots_[index];
  QueueWorker* worker = slot.worker.get();
  pool_.post(slot.reactor,
             make_waiting_command([worker](base::Reactor&) { worker->quiesce(); },
                                  [worker] { return worker->drained(); },
                                  [this, index, stopped] { detach(index, stopped); }));
}

void DeviceBase::detach(unsigned index, const Stopped& stopped) {
  Slot& slot = *slots_[index];
  QueueWorker* worker = slot.worker.get();
  const auto position = std::make_shared<std::uint32_t>(0);
  const auto run = [worker, position](base::Reactor& reactor) {
    take_off(*worker, reactor);
    *position = worker->queue().position();
  };
  pool_.post(slot.reactor, run, [this, index, stopped, position] {
    Slot& mine = *slots_[index];
    mine.attached = false;
    worker_stopped(*mine.worker);
    mine.worker.reset();
    pool_.unplace(mine.reactor);
    finish(index);
    stopped(*position);
  });
}

void DeviceBase::enable_queue(unsigned index, bool enabled, Done done) {
  const auto run = [enabled](base::Reactor&, QueueWorker& worker) {
    worker.queue().enabled_ = enabled;
    worker.enabled_changed(enabled);
  };
  const auto then = [this, index, enabled](const Done& answered) {
    Slot& slot = *slots_[index];
    slot.enabled = enabled;
    worker_enabled(*slot.worker, slot.reactor, enabled, [this, index, answered] {
      finish(index);
      answered({});
    });
  };
  on_reactor(index, std::move(done), run, then);
}

void DeviceBase::set_call(unsigned index, base::Fd call, Done done) {
  const auto shared = std::make_shared<base::Fd>(std::move(call));
  const auto run = [shared](base::Reactor& reactor, QueueWorker& worker) {
    reactor.calls().flush();
    std::swap(worker.queue().call_, *shared);
    // A call that was sent to the old one may never have been seen.
    if (worker.queue().call_.valid()) reactor.calls().signal(worker.queue().call_.get());
  };
  on_reactor(index, std::move(done), run, [this, index](const Done& answered) {
    finish(index);
    answered({});
  });
}

void DeviceBase::set_kick(unsigned index, base::Fd kick, Done done) {
  struct Kicks {
    base::Fd next, old;
  };
  const auto kicks = std::make_shared<Kicks>();
  kicks->next = std::move(kick);
  const auto run = [kicks](base::Reactor& reactor, QueueWorker& worker) {
    auto& mine = worker.queue().kick_;
    if (mine.valid()) reactor.unwatch(mine.get());
    kicks->old = std::move(mine);
    if (kicks->next.valid() && reactor.watch(kicks->next.get())) mine = std::move(kicks->next);
  };
  on_reactor(index, std::move(done), run, [this, index](const Done& answered) {
    finish(index);
    answered({});
  });
}

void DeviceBase::set_memory(std::shared_ptr<const GuestMemory> memory, Done done) {
  CHECK(memory != nullptr);
  const auto all = std::make_shared<Join>([this, done = std::move(done)] { answer(done, {}); });
  for (unsigned index = 0; index < slots_.size(); ++index) {
    enqueue(index, [this, index, memory, all] { swap_memory(index, memory, all); });
  }
}

void DeviceBase::swap_memory(unsigned index, std::shared_ptr<const GuestMemory> memory,
                             const std::shared_ptr<Join>& all) {
  Slot& slot = *slots_[index];
  if (slot.worker == nullptr) return finish(index);
  QueueWorker* worker = slot.worker.get();
  // The command holds the old snapshot until nothing in flight refers to it.
  pool_.post(
      slot.reactor,
      make_waiting_command(
          [worker, memory = std::move(memory)](base::Reactor& reactor) mutable {
            worker->queue().swap_memory(memory, reactor.calls());
          },
          [worker] { return worker->memory_released(); }, [this, index, all] { finish(index); }));
}

void DeviceBase::set_log(std::shared_ptr<DirtyLog> log, Done done) {
  const auto all = std::make_shared<Join>([this, done = std::move(done)] { answer(done, {}); });
  for (unsigned index = 0; index < slots_.size(); ++index) {
    enqueue(index, [this, index, log, all] {
      Slot& slot = *slots_[index];
      if (slot.worker == nullptr) return finish(index);
      pool_.post(
          slot.reactor,
          [worker = slot.worker.get(), log](base::Reactor&) mutable {
            worker->queue().swap_log(log);
          },
          [this, index, all] { finish(index); });
    });
  }
}

base::Result<void> DeviceBase::announce(std::span<const std::uint8_t, 6>) {
  return base::fail(name_ + " is no network device");
}

base::Result<void> DeviceBase::set_mtu(std::uint16_t) {
  return base::fail(name_ + " is no network device");
}

DeviceBase::QueueStatus DeviceBase::queue_status(unsigned index) const {
  QueueStatus out;
  const Slot& slot = *slots_.at(index);
  out.fault = slot.fault;
  out.pinned = slot.pin.has_value();
  if (slot.worker == nullptr) return out;
  const Queue& queue = slot.worker->queue();
  out.started = slot.attached;
  out.enabled = slot.enabled;
  out.reactor = slot.reactor;
  out.size = queue.size();
  out.packed = queue.packed();
  out.kicks_armed = queue.counters.kicks_armed.get();
  out.calls = queue.counters.calls.get();
  out.calls_suppressed = queue.counters.calls_suppressed.get();
  out.chains = queue.counters.chains.get();
  out.busy_cycles = slot.worker->busy_cycles();
  out.can_move = slot.attached && slot.worker->can_move();
  return out;
}

QueueWorker* DeviceBase::worker(unsigned index) const {
  return index < slots_.size() ? slots_[index]->worker.get() : nullptr;
}

}  // namespace millrace::virtio

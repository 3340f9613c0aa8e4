// What DeviceBase keeps of each queue, and the commands that carry it to a reactor and from one to
// another. Private to device_base.cpp and device_move.cpp.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "base/handover.hpp"
#include "virtio/device_base.hpp"
#include "virtio/waiting_command.hpp"

namespace millrace::virtio {

struct DeviceBase::Slot {
  std::unique_ptr<QueueWorker> worker;  // null: not started
  unsigned reactor = 0;
  std::optional<unsigned> pin;
  bool attached = false, enabled = false;
  Fault fault = Fault::none;
  std::deque<std::function<void()>> operations;  // the first is under way
};

// Waits on the reactor until the queue is poisoned or taken off; one for each queue start and
// reactor.
struct DeviceBase::Notice final : FaultNotice {
  Notice(DeviceBase& d, unsigned i, QueueWorker& w) : device{d}, index{i}, worker{w} {}
  base::Progress run(base::Reactor&) noexcept override {
    fault = worker.queue().poison_;
    if (fault != Fault::none) return base::Progress::done;
    worker.queue().fault_notice_ = this;
    return base::Progress::pending;
  }
  // By then the queue may be another reactor's: nothing of it is looked at.
  void done() override { device.noticed(index, fault); }

  DeviceBase& device;
  unsigned index;
  QueueWorker& worker;
};

// What passes between the reactors of a move. Made and dropped by control.
struct DeviceBase::Baton {
  QueueWorker& worker;
  std::shared_ptr<base::Handover> handover;  // null: there is nothing but the queue
  base::Reactor& to;
  std::atomic<bool> free{false};  // the old owner has let go
  base::Fd refused;               // a kick that the new owner cannot wait on
};

// Lets a queue go: it takes nothing more, what is in flight comes back, then it is free.
class DeviceBase::Departure final : public WaitingCommand {
 public:
  Departure(std::shared_ptr<Baton> baton, std::function<void()> done)
      : WaitingCommand{std::move(done)}, baton_{std::move(baton)} {}
  // What is waited for besides requests in flight comes within a few rounds of other reactors.
  bool arm() noexcept override { return stage_ != Stage::draining; }

 private:
  enum class Stage { waiting, draining, leaving };
  bool step(base::Reactor& reactor) noexcept override;

  std::shared_ptr<Baton> baton_;
  Stage stage_ = Stage::waiting;
};

// Takes the queue as soon as it is free.
class DeviceBase::Arrival final : public WaitingCommand {
 public:
  Arrival(std::shared_ptr<Baton> baton, std::function<void()> done)
      : WaitingCommand{std::move(done)}, baton_{std::move(baton)} {}
  bool arm() noexcept override { return baton_->free.load(std::memory_order_acquire); }

 private:
  bool step(base::Reactor& reactor) noexcept override;

  std::shared_ptr<Baton> baton_;
};

}  // namespace millrace::virtio

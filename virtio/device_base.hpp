// DeviceBase: the life of a device's queues across control and reactors, the same for every device
// kind: place, start, enable, swap memory, log and call descriptors, move, poison, drain, stop.
//
// Requests to one queue run one after the other, in the order they came: a stop that comes while a
// start is under way waits for it. What a swap replaces (memory, log, descriptors) is dropped on
// control after the reactor let go of it. Thread: control.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/handover.hpp"
#include "base/reactor_pool.hpp"
#include "virtio/device.hpp"
#include "virtio/queue.hpp"

namespace millrace::virtio {

class DeviceBase : public Device {
 public:
  DeviceBase(std::string name, unsigned queues, base::ReactorPool& pool);
  // All queues must be stopped (the session did so on hang-up).
  ~DeviceBase() override;

  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] unsigned queues_max() const override {
    return static_cast<unsigned>(slots_.size());
  }
  void set_features(std::uint64_t features) override { negotiated_ = features; }
  void start_queue(QueueStart start, Done done) override;
  void stop_queue(unsigned index, Stopped stopped) override;
  void enable_queue(unsigned index, bool enabled, Done done) override;
  void set_call(unsigned index, base::Fd call, Done done) override;
  void set_kick(unsigned index, base::Fd kick, Done done) override;
  void set_memory(std::shared_ptr<const GuestMemory> memory, Done done) override;
  void set_log(std::shared_ptr<DirtyLog> log, Done done) override;
  base::Result<void> announce(std::span<const std::uint8_t, 6> mac) override;
  base::Result<void> set_mtu(std::uint16_t mtu) override;
  void on_config_change(std::function<void()> hook) override { config_hook_ = std::move(hook); }
  void set_connected(bool connected) override { connected_ = connected; }
  void on_fault(std::function<void(unsigned, Fault)> hook) override {
    fault_hook_ = std::move(hook);
  }

  // Makes another reactor the owner of a started queue, in its turn among the requests to it. Its
  // driver notices nothing: what is in flight completes first, position, descriptors and counters
  // stay. `done` comes from the event loop; it fails where there is no such queue or reactor, where
  // the queue is not started, and for queues that stay where they are (QueueWorker::can_move()).
  void move_queue(unsigned index, unsigned reactor, Done done);
  // Where the queue shall be from its next start on; nothing: where the pool has room. It is not
  // moved. The queue and the reactor must exist.
  void pin_queue(unsigned index, std::optional<unsigned> reactor);

  // For status. A queue that is not started is reported as such.
  struct QueueStatus {
    bool started = false, enabled = false;
    unsigned reactor = 0;
    std::uint32_t size = 0;
    bool packed = false;
    std::uint64_t kicks_armed = 0, calls = 0, calls_suppressed = 0, chains = 0;
    std::uint64_t busy_cycles = 0;  // since its start, on whichever reactor: base::Poller
    bool pinned = false, can_move = false;
    Fault fault = Fault::none;
  };
  [[nodiscard]] QueueStatus queue_status(unsigned index) const;
  [[nodiscard]] bool connected() const { return connected_; }
  [[nodiscard]] std::uint64_t negotiated() const { return negotiated_; }

 protected:
  // Wraps an opened queue into the device's worker. Control; may allocate.
  // nullptr where that fails, and the start with it.
  [[nodiscard]] virtual std::unique_ptr<QueueWorker> make_worker(std::unique_ptr<Queue> queue) = 0;
  // Hooks on control after a worker was attached, enabled or disabled, and before it is detached,
  // with the reactor that owns it (net registers its receive queues at the switch here). `next`
  // must be called once, from the event loop or at once.
  virtual void worker_started(QueueWorker&, unsigned /*reactor*/, bool /*enabled*/,
                              std::function<void()> next) {
    next();
  }
  virtual void worker_enabled(QueueWorker&, unsigned /*reactor*/, bool /*enabled*/,
                              std::function<void()> next) {
    next();
  }
  virtual void worker_stopping(QueueWorker&, unsigned /*reactor*/, std::function<void()> next) {
    next();
  }
  // Before a queue leaves its reactor for another, and after it arrived there. `go` must be called
  // once with what else has to happen on the two (null: nothing), `next` once; both from the event
  // loop or at once. In between nothing of the worker may be touched.
  virtual void worker_moving(QueueWorker&, unsigned /*from*/, unsigned /*to*/,
                             std::function<void(std::shared_ptr<base::Handover>)> go) {
    go(nullptr);
  }
  virtual void worker_moved(QueueWorker&, unsigned /*reactor*/, std::function<void()> next) {
    next();
  }
  // The worker is off its reactor and about to be destroyed; take its counters over here.
  virtual void worker_stopped(QueueWorker&) {}
  void config_changed() {
    if (config_hook_) config_hook_();
  }
  [[nodiscard]] base::ReactorPool& pool() { return pool_; }
  // The worker of a started queue, or nullptr. Control may only read its counters.
  [[nodiscard]] QueueWorker* worker(unsigned index) const;

 private:
  struct Slot;
  struct Notice;
  struct Baton;
  class Departure;
  class Arrival;
  class Join;
  // On its reactor: makes it the owner of a queue, and ends that.
  static void put_on(QueueWorker& worker, base::Reactor& reactor, base::Fd& refused) noexcept;
  static void take_off(QueueWorker& worker, base::Reactor& reactor) noexcept;
  void enqueue(unsigned index, std::function<void()> operation);
  void finish(unsigned index);
  void run_start(const std::shared_ptr<QueueStart>& start, const Done& done);
  void run_stop(unsigned index, const Stopped& stopped);
  void drain(unsigned index, const Stopped& stopped);
  void detach(unsigned index, const Stopped& stopped);
  void run_move(unsigned index, unsigned reactor, const Done& done);
  void hand_over(unsigned index, unsigned reactor, std::shared_ptr<base::Handover> handover,
                 const Done& done);
  void handed_over(unsigned index, unsigned reactor, const Done& done);
  void swap_memory(unsigned index, std::shared_ptr<const GuestMemory> memory,
                   const std::shared_ptr<Join>& all);
  void answer(Done done, base::Result<void> result);
  template <class Run, class Then>
  void on_reactor(unsigned index, Done done, Run run, Then then);
  void noticed(unsigned index, Fault fault);

  std::string name_;
  base::ReactorPool& pool_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::uint64_t negotiated_ = 0;
  bool connected_ = false;
  std::function<void()> config_hook_;
  std::function<void(unsigned, Fault)> fault_hook_;
};

}  // namespace millrace::virtio

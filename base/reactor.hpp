// Reactor: a pinned thread that polls what it owns.
//
// Share nothing: a poller belongs to one reactor from add() to remove(). Control reaches in by
// Commands through the mailbox and nowhere else. A reactor never allocates, locks, blocks or
// throws.
#pragma once

#include <atomic>
#include <boost/lockfree/spsc_queue.hpp>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/call_signal.hpp"
#include "base/command.hpp"
#include "base/counter.hpp"
#include "base/fd.hpp"
#include "base/poller.hpp"
#include "base/result.hpp"

namespace millrace::base {

enum class IdleMode { poll, adaptive };

struct ReactorConfig {
  unsigned index = 0;  // position in the pool
  int core = -1;       // CPU to pin to; -1: not pinned
  IdleMode mode = IdleMode::adaptive;
  std::uint64_t spin_ns = 50'000;  // polls this long without work before it arms and sleeps
};

// Thread: written by the reactor, read by any.
struct ReactorCounters {
  Counter rounds;        // poll rounds
  Counter busy_rounds;   // rounds that found work
  Counter busy_cycles;   // TSC cycles in rounds that found work
  Counter sleeps;        // times it slept
  Counter commands;      // commands run
  Counter cycles_start;  // TSC when the thread started
  Counter longest_round_cycles;
};

class Reactor {
  struct Key {
    explicit Key() = default;
  };

 public:
  static constexpr std::size_t mailbox_size = 1024, pollers_max = 8192;
  static constexpr std::uint64_t rest_after_ns = 1'000'000;  // without work
  // One round in so many is measured poller by poller. A prime, so that no rhythm of the load hides
  // from it.
  static constexpr unsigned measure_every = 61;

  // Control thread. Fails where the core is not this process's or the kernel refuses AIO poll.
  static Result<std::unique_ptr<Reactor>> make(const ReactorConfig& config);
  Reactor(Key, const ReactorConfig& config);  // for make()
  ~Reactor();                                 // stops and joins
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // --- Control thread ---
  void start();
  // Ends the thread after the mailbox is drained, and joins it. Pending commands stay pending.
  void stop();
  // Hands `command` over. False: the mailbox is full, or 4 * mailbox_size commands wait for
  // take_done() (ReactorPool keeps it and retries).
  [[nodiscard]] bool try_post(Command* command) noexcept;
  // Takes back one command that ran, or nullptr.
  [[nodiscard]] Command* take_done() noexcept;
  // Becomes readable when a command came back. Owned by the pool that listens; one for many
  // reactors is fine. Before start().
  void set_done_event(int eventfd) noexcept { done_event_ = eventfd; }

  // --- Reactor thread ---
  // Pollers may be added and removed from within poll() and Command::run(), not from arm() or
  // disarm(). A poller that is added is taken to be disarmed; one that was removed is not called
  // again, not even in the round that goes on.
  void add(Poller& poller) noexcept;
  void remove(Poller& poller) noexcept;
  // A source that may be resting is not to rest from now on: its may_rest() changed.
  void stir(Poller& poller) noexcept;
  // Wakes this reactor from sleep when `fd` becomes readable. Edge triggered, and the descriptor is
  // never read: a tenant may own it. Returns false when the kernel refuses it.
  // The caller unwatches before it closes: the tenant's copy would keep the watch alive.
  bool watch(int fd) noexcept;
  void unwatch(int fd) noexcept;
  // Level triggered, for descriptors of our own which somebody drains (an io_uring).
  bool watch_level(int fd) noexcept;
  // Sends a pending command back to control. Calls that were queued until now go out first, so
  // control may close a call descriptor once its command came back.
  void complete(Command& command) noexcept;
  [[nodiscard]] CallSignal& calls() noexcept { return *calls_; }
  // TSC at the start of this round.
  [[nodiscard]] std::uint64_t round_cycles() const noexcept { return round_cycles_; }
  // Whether this round is measured; then attribute() notes what a poller's work took, and takes it
  // off the poller in whose visit it was done. See load_sample.hpp.
  [[nodiscard]] bool measuring() const noexcept { return measuring_; }
  void attribute(Poller& poller, std::uint64_t spent) noexcept {
    poller.busy_cycles_.add(spent * measure_every);
    attributed_ += spent;
  }

  // --- Any thread ---
  // Wakes the reactor if it sleeps. Used by links from other reactors after they pushed.
  void wake() noexcept;
  [[nodiscard]] unsigned index() const noexcept { return config_.index; }
  [[nodiscard]] const ReactorConfig& config() const noexcept { return config_; }
  [[nodiscard]] const ReactorCounters& counters() const noexcept { return counters_; }

 private:
  void run() noexcept;
  bool drain_mailbox() noexcept;
  bool poll_all() noexcept;
  void visit_all_next() noexcept;
  bool poll_working() noexcept;
  void look_ahead(std::size_t next) noexcept;
  bool poll_and_measure() noexcept;
  bool poll_resting() noexcept;
  void put_to_rest() noexcept;
  void notify_done() noexcept;
  void account(std::uint64_t round_end, bool busy) noexcept;
  void sleep_until_work() noexcept;
  bool arm_all(std::uint64_t& sleep_ns) noexcept;
  void disarm_all() noexcept;
  void wait(std::uint64_t sleep_ns) noexcept;
  void discard_edges() noexcept;
  void drop_removed() noexcept;
  bool watch_for(int fd, std::uint32_t events) noexcept;

  static constexpr std::size_t line = 64;  // bytes that processors pass among them at a time

  ReactorConfig config_;
  std::unique_ptr<CallSignal> calls_;
  Fd epoll_, wake_event_;
  int done_event_ = -1;
  std::uint64_t spin_cycles_ = 0;
  std::size_t posted_ = 0;  // commands handed over and not taken back; control's

  // The reactor's own, written every round.
  alignas(line) std::vector<Poller*> pollers_;  // null: removed in this round, or resting now
  std::vector<Poller*> resting_;                // null: removed in this round, or at work again
  std::size_t next_to_rest_ = 0, next_resting_ = 0;
  std::uint64_t rest_cycles_ = 0;
  unsigned resting_visits_ = 0;  // in the next round
  bool removed_ = false, done_unsaid_ = false, measuring_ = false;
  unsigned rounds_to_measure_ = measure_every;
  std::uint64_t round_cycles_ = 0, idle_since_ = 0, attributed_ = 0;
  std::uint64_t memory_faults_seen_ = 0;
  ReactorCounters counters_;

  // Read by whoever wakes this reactor; written twice a sleep.
  alignas(line) std::atomic<bool> sleeping_{false};
  std::atomic<bool> stopping_{false};

  alignas(
      line) boost::lockfree::spsc_queue<Command*, boost::lockfree::capacity<mailbox_size>> mailbox_;
  boost::lockfree::spsc_queue<Command*, boost::lockfree::capacity<4 * mailbox_size>> done_;
  std::thread thread_;
};

}  // namespace millrace::base

// Reclaimer: gives pages that a guest does not need back to the host, on a thread of its own: the
// call that punches a hole takes locks of the kernel and its time, and a reactor has neither to
// give. One for the daemon; a balloon's queue has one buffer with it at a time.
//
// A guest may name any page of its own, also one that a request of another device is using: that
// request then meets zeros, as it would if the guest had written them, and nobody else is touched.
// A page that hardware reads and writes by itself must stay where it is; `pinned` knows those.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fd.hpp"
#include "base/reactor.hpp"
#include "base/result.hpp"
#include "virtio/chain.hpp"
#include "virtio/memory.hpp"

namespace millrace::guest {

// What became of the bytes that guests gave back.
struct ReclaimCounters {
  std::atomic<std::uint64_t> reclaimed{0};  // bytes that the host has again
  std::atomic<std::uint64_t> kept{0};       // less than a page of the host's, or of no memory
  std::atomic<std::uint64_t> pinned{0};     // in use by hardware
  std::atomic<std::uint64_t> refused{0};    // by the kernel
};

class Reclaimer;

// Work of another kind than a buffer full of pages, done in pieces on the reclaimer's thread.
class ReclaimTask {
 public:
  // One piece, bounded as a buffer is. False: there is more.
  virtual bool step(Reclaimer& reclaimer) = 0;

 protected:
  ~ReclaimTask() = default;
};

// One buffer of a driver's. Its fields are the asker's, but for the time from ask() to `done`.
struct ReclaimJob {
  enum class State : std::uint8_t { idle, asked, done };
  std::atomic<State> state{State::idle};
  ReclaimTask* task = nullptr;  // instead of what follows
  const virtio::Chain* chain = nullptr;
  const virtio::GuestMemory* memory = nullptr;
  bool numbers = false;  // the buffer holds page numbers; else its writable part is the pages
  base::Reactor* reactor = nullptr;  // woken when it is done
  ReclaimCounters* counters = nullptr;
};

class Reclaimer {
 public:
  // Whether any byte of a range is in use by hardware. Called from the reclaimer's thread.
  using Pinned = std::function<bool(const virtio::GuestMemory& memory, std::uint64_t guest_address,
                                    std::uint64_t bytes)>;

  // Control. Page numbers of one buffer: a driver sends 256.
  static constexpr std::size_t numbers_max = 64 << 10;
  static base::Result<std::unique_ptr<Reclaimer>> make(Pinned pinned);
  ~Reclaimer();
  Reclaimer(const Reclaimer&) = delete;
  Reclaimer& operator=(const Reclaimer&) = delete;

  // Control. A job that is removed is idle. May wait for the buffer under work.
  void add(ReclaimJob& job);
  void remove(ReclaimJob& job);
  // Waits until the buffer under work is done: afterwards every answer of `pinned` that is acted on
  // is newer than the call. Thread: any that may wait.
  void settle();
  // Thread: the asker's reactor. Never blocks.
  void ask(ReclaimJob& job) noexcept;

  // For a task. Whether hardware uses any of it.
  [[nodiscard]] bool is_pinned(const virtio::GuestMemory& memory, std::uint64_t guest_address,
                               std::uint64_t bytes) const {
    return pinned_ && pinned_(memory, guest_address, bytes);
  }
  // Gives all of these pages back. False where some stayed: the counters say why.
  bool give_back(const virtio::GuestMemory& memory, std::uint64_t guest_address,
                 std::uint64_t bytes, ReclaimCounters& counters);

 private:
  Reclaimer(base::Fd event, Pinned pinned);
  void run();
  // False: it is not done.
  bool serve(ReclaimJob& job);
  void serve_numbers(const ReclaimJob& job);
  void reclaim(const virtio::GuestMemory& memory, ReclaimCounters& counters, std::byte* data,
               std::uint64_t guest_address, std::uint64_t bytes);

  base::Fd event_;
  const Pinned pinned_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;  // of the list; no reactor takes it
  std::vector<ReclaimJob*> jobs_;
  std::thread thread_;
};

}  // namespace millrace::guest

// Pinner: pins guests' memory on a thread of its own, one for the daemon. Registering memory that
// was never touched takes seconds a gigabyte, and giving it back some milliseconds: neither control
// nor a reactor has that time. Until memory is pinned, transfers go without.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "blk/pin_board.hpp"
#include "blk/pinned_memory.hpp"

namespace millrace::blk {

class Pinner {
 public:
  Pinner() = default;
  ~Pinner();
  Pinner(const Pinner&) = delete;
  Pinner& operator=(const Pinner&) = delete;

  // --- control ---
  // Called on the pinner's thread after memory came on the board and before it is pinned: waits
  // until whoever looked at the board before that has done what he looked for.
  void before_pinning(std::function<void()> settle) { settle_ = std::move(settle); }
  // Starts to pin; ready() or a failure comes later.
  [[nodiscard]] std::shared_ptr<PinnedMemory> pin(
      std::shared_ptr<const virtio::GuestMemory> memory);
  // Unpins soon. No channel may have it any more.
  void release(std::shared_ptr<PinnedMemory> memory);
  // Thread: any.
  [[nodiscard]] const PinBoard& board() const { return board_; }

 private:
  struct Job {
    std::shared_ptr<PinnedMemory> memory;
    bool pins;  // else it is to be dropped here
  };
  void ask(Job job);
  void run();

  std::function<void()> settle_;
  PinBoard board_;
  std::mutex mutex_;  // of what follows; no reactor takes it
  std::condition_variable asked_;
  std::deque<Job> jobs_;
  bool stopping_ = false;
  std::thread thread_;  // from the first job on
};

}  // namespace millrace::blk

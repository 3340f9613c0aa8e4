// Uring: one io_uring of one reactor, shared by all disks whose queues are there.
//
// A round of the reactor is one visit: reap what finished (that frees room), hand what the channels
// prepared to the kernel in one system call, and reap again. A finished Io is put on its home list,
// where its channel finds it in the same round. Nothing here waits: what has no room stays with its
// channel. While the reactor sleeps, an eventfd that the kernel signals at a completion wakes it; a
// ring with iopoll has no such signal, and keeps its reactor awake while anything is in flight.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/poller.hpp"
#include "base/reactor.hpp"
#include "base/result.hpp"
#include "blk/backend.hpp"
#include "blk/limits.hpp"
#include "blk/pinned_memory.hpp"

namespace millrace::blk {

// What to ask of the kernel. The probe turns off what it does not have; a test turns off more.
struct UringOptions {
  bool defer_taskrun = true;  // SINGLE_ISSUER | DEFER_TASKRUN: Linux 6.1
  bool coop_taskrun = true;   // COOP_TASKRUN: Linux 5.19
  bool registered_files = true;
  bool registered_ring = true;   // the ring itself as a registered descriptor: Linux 5.18
  bool clone_buffers = true;     // IORING_REGISTER_CLONE_BUFFERS into a part of a table: Linux 6.13
  bool vectored_buffers = true;  // READV_FIXED, WRITEV_FIXED: Linux 6.15
  // Completions are looked for on the device: for direct reads and writes, nothing else.
  bool iopoll = false;
  unsigned entries = limits::ring_entries;
  unsigned completions = limits::completion_entries;
};

// The words for what a ring has, for status: "defer-taskrun", "single-issuer", ...
[[nodiscard]] std::vector<std::string> names_of(const UringOptions& options);

// A file as a ring knows it. slot -1: not registered, by descriptor.
struct UringFile {
  int fd = -1;
  int slot = -1;
};

class Uring final : public base::Poller {
 public:
  // Control. Tries the options from the best to the plainest; `options` then says what was had.
  static base::Result<std::unique_ptr<Uring>> make(UringOptions& options);
  ~Uring() override;
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // --- owning reactor ---
  // Called from the command that adds it as a poller, and from the one that removes it.
  void attached(base::Reactor& reactor) noexcept;
  void detached(base::Reactor& reactor) noexcept;

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;

  // Registers `fd`, or finds it registered (counted). Falls back to the plain descriptor.
  [[nodiscard]] UringFile add_file(int fd) noexcept;
  void remove_file(UringFile file) noexcept;

  // Clones the buffers of memory that is ready(), or finds them cloned (counted). Answers the index
  // of the first; -1: there is no room, or the kernel does not do it.
  [[nodiscard]] int add_buffers(const PinnedMemory& memory) noexcept;
  // False: not now, what was prepared with them is not handed over; try again in a later visit.
  [[nodiscard]] bool remove_buffers(const PinnedMemory& memory) noexcept;

  // Prepare one step of `io`, handed over in the next visit; the outcome is put in io.result (bytes
  // or a negative errno) and `io` on *io.home. False: no room now. Two or more `vectors` must stay
  // until then; of a single one only its memory. `buffer`: the registered buffer that all of them
  // lie in, or -1.
  [[nodiscard]] bool read(Io& io, UringFile file, std::span<const iovec> vectors,
                          int buffer = -1) noexcept;
  [[nodiscard]] bool write(Io& io, UringFile file, std::span<const iovec> vectors,
                           int buffer = -1) noexcept;
  // Whether several vectors can be in one registered buffer.
  [[nodiscard]] bool vectored_buffers() const noexcept;
  [[nodiscard]] bool sync(Io& io, UringFile file) noexcept;
  [[nodiscard]] bool allocate(Io& io, UringFile file, int mode) noexcept;

  // Thread: any. Prepared or in the kernel.
  [[nodiscard]] unsigned in_flight() const noexcept {
    return static_cast<unsigned>(in_flight_.get());
  }

 private:
  struct State;
  explicit Uring(std::unique_ptr<State> state);
  bool reap() noexcept;
  [[nodiscard]] bool work_waits() const noexcept;

  std::unique_ptr<State> state_;
  base::Reactor* reactor_ = nullptr;
  bool armed_ = false;
  base::Counter in_flight_;
};

}  // namespace millrace::blk

// Uring: one io_uring of one reactor, shared by all disks whose queues are there.
//
// A round of the reactor is one visit: reap what finished (that frees room), hand what the channels
// prepared to the kernel in one system call, and reap again. A finished Io is put on its home list,
// where its channel finds it in the same round. Nothing here waits: what has no room stays with its
// channel. While the reactor sleeps, an eventfd that the kernel
// signals at a completion wakes it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/poller.hpp"
#include "base/reactor.hpp"
#include "base/result.hpp"
#include "blk/backend.hpp"
#include "blk/limits.hpp"

namespace millrace::blk {

// What to ask of the kernel. The probe turns off what it does not have; a test turns off more.
struct UringOptions {
  bool defer_taskrun = true;  // SINGLE_ISSUER | DEFER_TASKRUN: Linux 6.1
  bool coop_taskrun = true;   // COOP_TASKRUN: Linux 5.19
  bool registered_files = true;
  unsigned entries = limits::ring_entries;
  unsigned completions = limits::completion_entries;
};

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

  // Prepare one step of `io`, handed over in the next visit; the outcome is put in io.result (bytes
  // or a negative errno) and `io` on *io.home. False: no room now. Two or more `vectors` must stay
  // until then; of a single one only its memory.
  [[nodiscard]] bool read(Io& io, UringFile file, std::span<const iovec> vectors) noexcept;
  [[nodiscard]] bool write(Io& io, UringFile file, std::span<const iovec> vectors) noexcept;
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

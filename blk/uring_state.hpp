// What a Uring holds; for the files that implement it.
#pragma once

#include <liburing.h>

#include <vector>

#include "base/fd.hpp"
#include "blk/uring.hpp"

namespace millrace::blk {

// Whether this kernel clones registered buffers into a part of a table. Control.
[[nodiscard]] bool can_clone_buffers();
// Whether it takes a ring as a registered descriptor. Control.
[[nodiscard]] bool can_register_ring();

// liburing 2.3 knows all of these; older kernels refuse what they do not have.
struct Uring::State {
  io_uring ring{};
  bool open = false;
  bool starts_disabled = false;
  bool deferred = false;  // completions need a visit of the kernel (DEFER_TASKRUN, COOP_TASKRUN)
  unsigned in_flight_max = 0;
  base::Fd event;  // signalled by the kernel at a completion, while armed
  struct Slot {
    int fd = -1;
    unsigned users = 0;
  };
  std::vector<Slot> files;  // empty: no registered files

  struct Clone {
    const PinnedMemory* memory = nullptr;
    unsigned first = 0, count = 0, users = 0;  // users 0: free
  };
  std::vector<Clone> clones;  // empty: no registered buffers
  bool vectored_buffers = false;
  bool registered_ring = false, wants_registered_ring = false;
  bool iopoll = false;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (open) io_uring_queue_exit(&ring);
  }
};

}  // namespace millrace::blk

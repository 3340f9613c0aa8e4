// CallSignal: signals eventfds that a tenant owns, by a path that cannot block.
//
// A plain write(2) on a tenant's eventfd blocks for ever once the tenant saturates the counter and
// clears O_NONBLOCK (the flag is shared with it). So the kernel is asked to signal: an AIO poll
// request on a descriptor of ours that is always ready, completing into the tenant's eventfd
// (IOCB_FLAG_RESFD). Requests are batched; one io_submit(2) a round.
// Thread: the owning reactor, but for make(). Never allocates after make().
#pragma once

#include <cstdint>
#include <memory>

#include "base/counter.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::base {

class CallSignal {
 public:
  static constexpr unsigned batch_max = 128;

  // Control thread. Fails where the kernel has no AIO poll (Linux before 4.18) or fs.aio-max-nr is
  // spent.
  static Result<std::unique_ptr<CallSignal>> make();
  ~CallSignal();
  CallSignal(const CallSignal&) = delete;
  CallSignal& operator=(const CallSignal&) = delete;

  // Queues a signal for `eventfd`, which must stay open until flush(). Flushes when the batch is
  // full.
  void signal(int eventfd) noexcept;
  // Sends what is queued. A descriptor that the kernel refuses is counted, never an error of ours.
  void flush() noexcept;

  Counter sent;     // signals handed to the kernel
  Counter refused;  // signals that the kernel refused (the descriptor is no eventfd any more)

 private:
  struct State;
  explicit CallSignal(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace millrace::base

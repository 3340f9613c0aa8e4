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

class CallSignal;

// Somebody who shows the other side something during a round, and asks afterwards whether that one
// wants to be called for it: once a round, whatever was shown, and after one fence for everybody.
class CallAsker {
 public:
  virtual ~CallAsker() = default;
  // What was shown is visible to all who do not yet see it said here that they are called:
  // a full fence lies between the two. Signals through `calls` what is wanted.
  virtual void ask(CallSignal& calls) noexcept = 0;

 private:
  friend class CallSignal;
  CallAsker* next_ = nullptr;  // of those who ask in this round
  bool asks_ = false;
};

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
  // `asker`, which must stay until flush(), is asked then, once.
  void ask_later(CallAsker& asker) noexcept {
    if (asker.asks_) return;
    asker.asks_ = true;
    asker.next_ = askers_;
    askers_ = &asker;
  }
  // Asks who is to be asked, and sends what is queued. A descriptor that the kernel refuses is
  // counted, never an error of ours.
  void flush() noexcept;

  Counter sent;     // signals handed to the kernel
  Counter refused;  // signals that the kernel refused (the descriptor is no eventfd any more)

 private:
  struct State;
  explicit CallSignal(std::unique_ptr<State> state);
  void ask_all() noexcept;
  void send() noexcept;
  std::unique_ptr<State> state_;
  CallAsker* askers_ = nullptr;
};

}  // namespace millrace::base

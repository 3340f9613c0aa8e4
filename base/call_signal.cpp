#include "base/call_signal.hpp"

#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <utility>

#include "base/error.hpp"

namespace millrace::base {

namespace {

// Completions stay in the kernel's ring until they are reaped, and every flush reaps. The room is
// several batches because the kernel hands its slots out to processors in parcels.
constexpr unsigned ring_size = 8 * CallSignal::batch_max;

// What io_setup(2) maps at the context's address (fs/aio.c, struct aio_ring).
struct Ring {
  std::uint32_t id, nr, head, tail, magic, compat_features, incompat_features, header_length;
};
constexpr std::uint32_t ring_magic = 0xa10a10a1;

}  // namespace

struct CallSignal::State {
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (context != 0) ::syscall(SYS_io_destroy, context);
  }

  // Returns how many were taken, or -errno of the first.
  long submit(unsigned first) noexcept {
    const auto taken = ::syscall(SYS_io_submit, context, queued - first, &pointers[first]);
    return taken >= 0 ? taken : -errno;
  }

  // Throws the completions away: the eventfds were signalled as they were posted.
  void reap() noexcept {
    if (mapped) {
      auto* ring = mapped_ring();
      const auto tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
      __atomic_store_n(&ring->head, tail, __ATOMIC_RELEASE);
      return;
    }
    std::array<io_event, CallSignal::batch_max> events;
    timespec now{0, 0};
    ::syscall(SYS_io_getevents, context, 0L, static_cast<long>(events.size()), events.data(), &now);
  }

  // A context's number is the address of its ring.
  [[nodiscard]] Ring* mapped_ring() const noexcept { return std::bit_cast<Ring*>(context); }

  aio_context_t context = 0;
  bool mapped = false;  // the ring has the layout that we know
  Fd ready;             // our own eventfd, readable for ever
  unsigned queued = 0;
  std::array<iocb, batch_max> requests{};
  std::array<iocb*, batch_max> pointers{};
};

CallSignal::CallSignal(std::unique_ptr<State> state) : state_{std::move(state)} {}
CallSignal::~CallSignal() = default;

Result<std::unique_ptr<CallSignal>> CallSignal::make() {
  auto state = std::make_unique<State>();
  state->ready = Fd{::eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!state->ready) return fail_errno("cannot make an eventfd");
  if (::syscall(SYS_io_setup, ring_size, &state->context) != 0) {
    return errno == EAGAIN ? fail("cannot make an AIO context: raise fs.aio-max-nr (sysctl)")
                           : fail_errno("cannot make an AIO context (io_setup)");
  }
  const auto* ring = state->mapped_ring();
  state->mapped = ring->magic == ring_magic && ring->incompat_features == 0;
  for (unsigned i = 0; i < batch_max; ++i) {
    auto& request = state->requests[i];
    request.aio_lio_opcode = IOCB_CMD_POLL;
    request.aio_fildes = static_cast<std::uint32_t>(state->ready.get());
    request.aio_buf = POLLIN;
    request.aio_flags = IOCB_FLAG_RESFD;
    state->pointers[i] = &request;
  }

  // Ask the kernel once, on a descriptor of our own.
  const Fd probe{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!probe) return fail_errno("cannot make an eventfd");
  auto calls = std::unique_ptr<CallSignal>(new CallSignal{std::move(state)});
  calls->signal(probe.get());
  calls->flush();
  std::uint64_t seen = 0;
  if (::read(probe.get(), &seen, sizeof(seen)) != sizeof(seen)) {
    return fail("this kernel has no AIO poll: Linux 4.18 or newer is needed");
  }
  calls->sent.set(0);
  return calls;
}

void CallSignal::signal(int eventfd) noexcept {
  if (state_->queued == batch_max) send();
  state_->requests[state_->queued++].aio_resfd = static_cast<std::uint32_t>(eventfd);
}

void CallSignal::flush() noexcept {
  if (askers_ != nullptr) ask_all();
  if (state_->queued != 0) send();
}

// The other side says what it wants, then looks at what was shown; we showed, and now look at what
// it wants. Without the fence both can miss each other.
void CallSignal::ask_all() noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  for (CallAsker* asker = std::exchange(askers_, nullptr); asker != nullptr;) {
    CallAsker& now = *std::exchange(asker, asker->next_);
    now.asks_ = false;
    now.ask(*this);
  }
}

void CallSignal::send() noexcept {
  bool retried = false;
  for (unsigned first = 0; first < state_->queued;) {
    const auto taken = state_->submit(first);
    if (taken > 0) {
      first += static_cast<unsigned>(taken);
      sent.add(static_cast<std::uint64_t>(taken));
      retried = false;
    } else if ((taken == -EAGAIN || taken == -EINTR) && !retried) {
      state_->reap();
      retried = true;
    } else {
      // The kernel stops at a request that it refuses: step over it, the others are owed.
      refused.add(1);
      ++first;
      retried = false;
    }
  }
  state_->queued = 0;
  state_->reap();
}

}  // namespace millrace::base

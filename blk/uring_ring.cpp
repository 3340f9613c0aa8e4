// Uring over liburing: set-up, visits, files and operations. Buffers: uring_buffers.cpp.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "blk/uring_state.hpp"

namespace millrace::blk {

namespace {

int open_ring(io_uring& ring, const UringOptions& options) {
  io_uring_params params{};
  params.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
  params.cq_entries = options.completions;
  if (options.defer_taskrun) {
    // The submitting thread is the one that enables the ring: the reactor.
    params.flags |= IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                    IORING_SETUP_R_DISABLED | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL;
  } else if (options.coop_taskrun) {
    params.flags |= IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL;
  }
  if (options.iopoll) params.flags |= IORING_SETUP_IOPOLL;
  return io_uring_queue_init_params(options.entries, &ring, &params);
}

// As Linux numbers them; the library's header may be older.
constexpr int op_readv_fixed = 60, op_writev_fixed = 61;

bool has_operations(io_uring& ring, std::initializer_list<int> wanted) {
  io_uring_probe* const probe = io_uring_get_probe_ring(&ring);
  if (probe == nullptr) return false;
  bool all = true;
  for (const int operation : wanted) {
    all = all && io_uring_opcode_supported(probe, operation) != 0;
  }
  io_uring_free_probe(probe);
  return all;
}

// While armed it is signalled. Polling the ring's own descriptor misses completions that wait as
// deferred task work.
base::Result<base::Fd> make_event(io_uring& ring) {
  base::Fd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  if (!event.valid() || io_uring_register_eventfd(&ring, event.get()) != 0 ||
      io_uring_cq_eventfd_toggle(&ring, false) != 0) {
    return base::fail("cannot have io_uring signal an eventfd: Linux 5.8 or newer is needed");
  }
  return event;
}

}  // namespace

Uring::Uring(std::unique_ptr<State> state) : state_{std::move(state)} {}
Uring::~Uring() = default;

base::Result<std::unique_ptr<Uring>> Uring::make(UringOptions& options) {
  auto state = std::make_unique<State>();
  int outcome = open_ring(state->ring, options);
  if (outcome < 0 && options.defer_taskrun) {
    options.defer_taskrun = false;
    outcome = open_ring(state->ring, options);
  }
  if (outcome < 0 && options.coop_taskrun) {
    options.coop_taskrun = false;
    outcome = open_ring(state->ring, options);
  }
  if (outcome < 0) {
    return base::fail(std::string{"cannot set up io_uring: "} + std::strerror(-outcome) +
                      (outcome == -EPERM || outcome == -ENOSYS
                           ? "; is it allowed here (sysctl kernel.io_uring_disabled, seccomp)?"
                           : ""));
  }
  state->open = true;
  state->starts_disabled = options.defer_taskrun;
  state->deferred = options.defer_taskrun || options.coop_taskrun;
  state->in_flight_max = *state->ring.cq.kring_entries;
  state->iopoll = options.iopoll;
  if (!has_operations(state->ring, {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
                                    IORING_OP_WRITE, IORING_OP_FSYNC, IORING_OP_FALLOCATE})) {
    return base::fail("this kernel's io_uring is too old: Linux 5.8 or newer is needed");
  }
  if (!options.iopoll) {
    auto event = make_event(state->ring);
    if (!event) return base::Unexpected{event.error()};
    state->event = std::move(*event);
  }
  options.registered_ring = options.registered_ring && can_register_ring();
  state->wants_registered_ring = options.registered_ring;
  options.clone_buffers = options.clone_buffers && can_clone_buffers();
  if (options.clone_buffers) state->clones.resize(limits::clones_max);
  options.vectored_buffers = options.clone_buffers && options.vectored_buffers &&
                             has_operations(state->ring, {op_readv_fixed, op_writev_fixed});
  state->vectored_buffers = options.vectored_buffers;
  if (options.registered_files &&
      io_uring_register_files_sparse(&state->ring, limits::files_max) == 0) {
    state->files.resize(limits::files_max);
  } else {
    options.registered_files = false;
  }
  return std::unique_ptr<Uring>{new Uring{std::move(state)}};
}

void Uring::attached(base::Reactor& reactor) noexcept {
  reactor_ = &reactor;
  if (state_->event.valid()) CHECK(reactor.watch_level(state_->event.get()));
  if (std::exchange(state_->starts_disabled, false)) {
    // io_uring_enable_rings(3), which the library of some distributions does not export.
    CHECK(::syscall(__NR_io_uring_register, state_->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                    nullptr, 0) == 0);
  }
  // Of this thread, so it is done here. Saves each call the search for the descriptor.
  if (state_->wants_registered_ring) {
    state_->registered_ring = io_uring_register_ring_fd(&state_->ring) == 1;
  }
}

void Uring::detached(base::Reactor& reactor) noexcept {
  CHECK(&reactor == reactor_ && in_flight() == 0);
  disarm();
  if (state_->event.valid()) reactor.unwatch(state_->event.get());
  if (std::exchange(state_->registered_ring, false)) {
    CHECK(io_uring_unregister_ring_fd(&state_->ring) == 1);
  }
  reactor_ = nullptr;
}

bool Uring::reap() noexcept {
  io_uring& ring = state_->ring;
  unsigned head = 0, count = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring, head, cqe) {
    Io* const io = static_cast<Io*>(io_uring_cqe_get_data(cqe));
    io->result = cqe->res;
    io->home->push(*io);
    ++count;
  }
  if (count == 0) return false;
  io_uring_cq_advance(&ring, count);
  in_flight_.set(in_flight_.get() - count);
  return true;
}

bool Uring::work_waits() const noexcept {
  if (state_->iopoll) return true;  // nobody says that something is done
  constexpr unsigned flags = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
  return io_uring_sq_ready(&state_->ring) > 0 ||
         (__atomic_load_n(state_->ring.sq.kflags, __ATOMIC_RELAXED) & flags) != 0;
}

bool Uring::poll() noexcept {
  if (in_flight() == 0) return false;
  bool busy = reap();
  if (work_waits()) {
    // A refusal (EAGAIN, EBUSY: short of memory) leaves the entries where they are, for the next
    // visit.
    busy |= io_uring_submit_and_get_events(&state_->ring) > 0;
    busy |= reap();
  }
  return busy;
}

bool Uring::arm() noexcept {
  if (in_flight() == 0) return false;
  if (state_->iopoll) return true;
  armed_ = true;
  CHECK(io_uring_cq_eventfd_toggle(&state_->ring, true) == 0);
  // The flag is visible before we look: a completion is either seen here or signals.
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return work_waits() || io_uring_cq_ready(&state_->ring) > 0;
}

void Uring::disarm() noexcept {
  if (!armed_) return;
  armed_ = false;
  CHECK(io_uring_cq_eventfd_toggle(&state_->ring, false) == 0);
  std::uint64_t count = 0;
  static_cast<void>(!::read(state_->event.get(), &count, sizeof count));
}

UringFile Uring::add_file(int fd) noexcept {
  int unused = -1;
  for (std::size_t i = 0; i < state_->files.size(); ++i) {
    State::Slot& slot = state_->files[i];
    if (slot.users > 0 && slot.fd == fd) {
      ++slot.users;
      return UringFile{fd, static_cast<int>(i)};
    }
    if (slot.users == 0 && unused < 0) unused = static_cast<int>(i);
  }
  if (unused < 0) return UringFile{fd, -1};
  if (io_uring_register_files_update(&state_->ring, static_cast<unsigned>(unused), &fd, 1) != 1) {
    return UringFile{fd, -1};
  }
  state_->files[static_cast<std::size_t>(unused)] = State::Slot{fd, 1};
  return UringFile{fd, unused};
}

void Uring::remove_file(UringFile file) noexcept {
  if (file.slot < 0) return;
  State::Slot& slot = state_->files[static_cast<std::size_t>(file.slot)];
  CHECK(slot.users > 0 && slot.fd == file.fd);
  if (--slot.users > 0) return;
  int none = -1;
  static_cast<void>(
      io_uring_register_files_update(&state_->ring, static_cast<unsigned>(file.slot), &none, 1));
  slot.fd = -1;
}

namespace {

int target(UringFile file) {
  return file.slot >= 0 ? file.slot : file.fd;
}

void finish_entry(io_uring_sqe& sqe, UringFile file, Io& io) {
  if (file.slot >= 0) sqe.flags |= IOSQE_FIXED_FILE;
  io_uring_sqe_set_data(&sqe, &io);
}

// nullptr: no room, neither here nor for its completion.
io_uring_sqe* entry(io_uring& ring, base::Counter& in_flight, unsigned in_flight_max) {
  if (in_flight.get() >= in_flight_max) return nullptr;
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring);
  if (sqe != nullptr) in_flight.add();
  return sqe;
}

// One transfer, either way.
struct UringTransfer {
  int plain, plain_vectored, fixed, fixed_vectored;

  void prepare(io_uring_sqe* sqe, const Io& io, UringFile file, std::span<const iovec> vectors,
               int buffer) const {
    const bool one = vectors.size() == 1;
    const void* const at = one ? vectors.front().iov_base : vectors.data();
    const auto count = static_cast<unsigned>(one ? vectors.front().iov_len : vectors.size());
    const int operation =
        buffer < 0 ? (one ? plain : plain_vectored) : (one ? fixed : fixed_vectored);
    io_uring_prep_rw(operation, sqe, target(file), at, count, io.offset);
    if (buffer >= 0) sqe->buf_index = static_cast<std::uint16_t>(buffer);
  }
};

constexpr UringTransfer reads{IORING_OP_READ, IORING_OP_READV, IORING_OP_READ_FIXED,
                              op_readv_fixed};
constexpr UringTransfer writes{IORING_OP_WRITE, IORING_OP_WRITEV, IORING_OP_WRITE_FIXED,
                               op_writev_fixed};

}  // namespace

bool Uring::vectored_buffers() const noexcept {
  return state_->vectored_buffers;
}

bool Uring::read(Io& io, UringFile file, std::span<const iovec> vectors, int buffer) noexcept {
  io_uring_sqe* const sqe = entry(state_->ring, in_flight_, state_->in_flight_max);
  if (sqe == nullptr) return false;
  reads.prepare(sqe, io, file, vectors, buffer);
  finish_entry(*sqe, file, io);
  return true;
}

bool Uring::write(Io& io, UringFile file, std::span<const iovec> vectors, int buffer) noexcept {
  io_uring_sqe* const sqe = entry(state_->ring, in_flight_, state_->in_flight_max);
  if (sqe == nullptr) return false;
  writes.prepare(sqe, io, file, vectors, buffer);
  if (io.durable) sqe->rw_flags = RWF_DSYNC;
  finish_entry(*sqe, file, io);
  return true;
}

bool Uring::sync(Io& io, UringFile file) noexcept {
  io_uring_sqe* const sqe = entry(state_->ring, in_flight_, state_->in_flight_max);
  if (sqe == nullptr) return false;
  io_uring_prep_fsync(sqe, target(file), IORING_FSYNC_DATASYNC);
  finish_entry(*sqe, file, io);
  return true;
}

bool Uring::allocate(Io& io, UringFile file, int mode) noexcept {
  io_uring_sqe* const sqe = entry(state_->ring, in_flight_, state_->in_flight_max);
  if (sqe == nullptr) return false;
  io_uring_prep_fallocate(sqe, target(file), mode, static_cast<off_t>(io.offset),
                          static_cast<off_t>(io.length));
  finish_entry(*sqe, file, io);
  return true;
}

}  // namespace millrace::blk

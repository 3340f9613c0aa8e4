// Registered buffers of a ring: clones of what the pinner registered. Nothing is pinned here.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "blk/uring_state.hpp"

namespace millrace::blk {

namespace {

// Linux 6.12 and 6.13; newer than the library's header.
constexpr unsigned register_clone_buffers = 30, clone_destination_replace = 1u << 1;
struct CloneBuffers {
  std::uint32_t source, flags, source_first, first, count;
  std::array<std::uint32_t, 3> reserved;
};
static_assert(sizeof(CloneBuffers) == 32);

// Only for the thread that submits, where the ring has a single issuer.
bool clone(io_uring& into, int source, unsigned first, unsigned count) {
  CloneBuffers wish{};
  wish.source = static_cast<std::uint32_t>(source);
  wish.flags = clone_destination_replace;
  wish.first = first;
  wish.count = count;
  return ::syscall(__NR_io_uring_register, into.ring_fd, register_clone_buffers, &wish, 1) == 0;
}

// A small ring for the probe.
struct Probe {
  io_uring ring{};
  bool open = false;
  Probe() : open{io_uring_queue_init(1, &ring, 0) == 0} {}
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;
  ~Probe() {
    if (open) io_uring_queue_exit(&ring);
  }
};

}  // namespace

// Twice into one table, as it is needed: Linux 6.12 clones into an empty one only.
bool can_clone_buffers() {
  static std::byte page[64];
  Probe from, into;
  const iovec part{page, sizeof page};
  return from.open && into.open && io_uring_register_buffers(&from.ring, &part, 1) == 0 &&
         clone(into.ring, from.ring.ring_fd, 0, 1) && clone(into.ring, from.ring.ring_fd, 1, 1);
}

bool can_register_ring() {
  Probe probe;
  return probe.open && io_uring_register_ring_fd(&probe.ring) == 1 &&
         io_uring_unregister_ring_fd(&probe.ring) == 1;
}

int Uring::add_buffers(const PinnedMemory& memory) noexcept {
  State::Clone* unused = nullptr;
  for (State::Clone& each : state_->clones) {
    if (each.users > 0 && each.memory == &memory) {
      ++each.users;
      return static_cast<int>(each.first);
    }
    if (each.users == 0 && unused == nullptr) unused = &each;
  }
  if (unused == nullptr) return -1;
  // The first gap that is long enough: behind the start, or behind another one's buffers.
  const unsigned count = memory.slots();
  const auto is_free = [this, count](unsigned first) {
    return first + count <= limits::buffers_max &&
           std::none_of(state_->clones.begin(), state_->clones.end(), [&](const auto& each) {
             return each.users > 0 && first < each.first + each.count && each.first < first + count;
           });
  };
  unsigned first = 0;
  bool found = is_free(0);
  for (const State::Clone& each : state_->clones) {
    if (found) break;
    if (each.users == 0) continue;
    first = each.first + each.count;
    found = is_free(first);
  }
  if (!found || !clone(state_->ring, memory.ring_fd(), first, count)) return -1;
  *unused = {&memory, first, count, 1};
  return static_cast<int>(first);
}

bool Uring::remove_buffers(const PinnedMemory& memory) noexcept {
  const auto found =
      std::find_if(state_->clones.begin(), state_->clones.end(),
                   [&](const auto& each) { return each.users > 0 && each.memory == &memory; });
  CHECK(found != state_->clones.end());
  if (found->users > 1) {
    --found->users;
    return true;
  }
  // A prepared entry names its buffer by number, and the kernel looks it up when it takes the
  // entry.
  if (io_uring_sq_ready(&state_->ring) > 0) io_uring_submit(&state_->ring);
  if (io_uring_sq_ready(&state_->ring) > 0) return false;
  constexpr unsigned at_once = 64;
  const std::array<iovec, at_once> none{};
  const std::array<__u64, at_once> tags{};
  for (unsigned done = 0; done < found->count;) {
    const unsigned now = std::min(found->count - done, at_once);
    const int outcome = io_uring_register_buffers_update_tag(&state_->ring, found->first + done,
                                                             none.data(), tags.data(), now);
    if (outcome <= 0) return false;  // short of memory
    done += static_cast<unsigned>(outcome);
  }
  found->users = 0;
  return true;
}

}  // namespace millrace::blk

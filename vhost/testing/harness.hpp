// Harness: a Session over a FakeDevice and a Frontend on the other end of its socket, all in one
// thread: the front-end turns the loop while it waits. For tests and fuzzers.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>

#include "vhost/frontend.hpp"
#include "vhost/session.hpp"
#include "vhost/testing/fake_device.hpp"

namespace millrace::vhost::testing {

[[nodiscard]] inline base::Fd make_memory(std::uint64_t size) {
  base::Fd fd{::memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  CHECK(fd.valid() && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

[[nodiscard]] inline base::Fd make_event() {
  base::Fd fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  CHECK(fd.valid());
  return fd;
}

[[nodiscard]] inline std::pair<base::Fd, base::Fd> make_sockets() {
  std::array<int, 2> ends{};
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) == 0);
  return {base::Fd{ends[0]}, base::Fd{ends[1]}};
}

// Descriptors that this process has open.
[[nodiscard]] inline unsigned open_fds() {
  unsigned count = 0;
  DIR* directory = ::opendir("/proc/self/fd");
  CHECK(directory != nullptr);
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

// Ring addresses inside a region whose user addresses start at `base`.
[[nodiscard]] inline wire::VringAddr ring_at(std::uint32_t index, std::uint64_t base) {
  return {.index = index,
          .flags = 0,
          .descriptors = base,
          .used = base + 0x2000,
          .available = base + 0x1000,
          .log = 0x2000};
}

struct Harness {
  explicit Harness(virtio::DeviceKind kind = virtio::DeviceKind::blk, unsigned queues = 4)
      : device{loop, kind, queues}, frontend{base::Fd{}} {
    connect();
  }
  ~Harness() {
    frontend.hang_up();
    device.hold = false;
    while (device.answer_one()) {
    }
    settle();
  }

  // A new session; the one before must have ended.
  void connect() {
    auto [ours, theirs] = make_sockets();
    ended = false;
    session =
        std::make_unique<Session>(loop, device, std::move(ours), "test", [this] { ended = true; });
    CHECK(session->start().has_value());
    frontend = Frontend{std::move(theirs)};
    frontend.set_pump([this] { turn(); });
    frontend.set_timeout(std::chrono::milliseconds{2000});
  }
  void turn() { loop.step(std::chrono::milliseconds{0}); }
  // Lets everything that is under way come to its end.
  void settle() {
    for (int i = 0; i < 64; ++i) turn();
  }
  // The usual start of a front-end, with the bits it can have.
  void negotiate(std::uint64_t without_protocol = 0, std::uint64_t without_features = 0) {
    CHECK(frontend.set_owner().has_value());
    features = Session::offered_features(device) & ~without_features &
               ~(virtio::feature::log_all | virtio::feature::ring_packed);
    CHECK(frontend
              .set_protocol_features(Session::offered_protocol_features(device) & ~without_protocol)
              .has_value());
    CHECK(frontend.set_features(features).has_value());
  }
  // One region of 1 MiB: guest 0, user 0x10000000.
  void give_memory() {
    memory = make_memory(memory_size);
    const Frontend::Region region{
        .guest_address = 0, .size = memory_size, .user_address = user_base, .fd = memory.get()};
    CHECK(frontend.set_mem_table({&region, 1}).has_value());
  }
  void set_up_ring(std::uint32_t index, std::uint32_t base = 0) {
    CHECK(frontend.set_vring_num(index, 256).has_value());
    CHECK(frontend.set_vring_base(index, base).has_value());
    CHECK(frontend.set_vring_addr(ring_at(index, user_base + index * 0x4000)).has_value());
    CHECK(frontend.set_vring_call(index, call.get()).has_value());
    CHECK(frontend.set_vring_kick(index, kick.get()).has_value());
  }
  void start_ring(std::uint32_t index, std::uint32_t base = 0) {
    set_up_ring(index, base);
    CHECK(frontend.set_vring_enable(index, true).has_value());
  }
  [[nodiscard]] bool called(const std::string& line) const {
    return std::ranges::find(device.calls, line) != device.calls.end();
  }

  static constexpr std::uint64_t user_base = 0x10000000, memory_size = 1 << 20;
  base::EventLoop loop;
  FakeDevice device;
  std::unique_ptr<Session> session;
  Frontend frontend;
  bool ended = false;
  std::uint64_t features = 0;
  base::Fd memory, kick = make_event(), call = make_event();
};

}  // namespace millrace::vhost::testing

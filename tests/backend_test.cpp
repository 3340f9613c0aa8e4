// What a tenant does to itself stays with it: real devices behind real sockets, one tenant that
// misbehaves, and another that goes on being served.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/backend_guest.hpp"
#include "tests/backend_rig.hpp"

namespace millrace::tests {
namespace {

using virtio::Fault;
using wire::BlkType;

constexpr unsigned queues = 4;  // of every disk here: both reactors have two of each

blk::Config ram(const std::string& name) {
  return ram_disk(name, queues);
}

bool all_served(DiskGuest& disk) {
  for (unsigned queue = 0; queue < queues; ++queue) {
    if (!disk.served(queue)) return false;
  }
  return true;
}

// An eventfd that cannot be signalled once more, and whose writers block.
void saturate(const base::Fd& event) {
  const std::uint64_t most = ~0ull - 1;
  std::uint64_t count = 0;
  while (::read(event.get(), &count, sizeof count) == sizeof count) {
  }
  ASSERT_EQ(::write(event.get(), &most, sizeof most), static_cast<ssize_t>(sizeof most));
  const int flags = ::fcntl(event.get(), F_GETFL);
  ASSERT_EQ(::fcntl(event.get(), F_SETFL, flags & ~O_NONBLOCK), 0);
}

bool signalled(const base::Fd& event) {
  struct pollfd poll {
    .fd = event.get(), .events = POLLIN, .revents = 0
  };
  return ::poll(&poll, 1, static_cast<int>(patience.count())) == 1;
}

// The last descriptor of the table links past its end.
void offer_past_the_table(SocketGuest& guest, unsigned ring) {
  const auto data = guest.allocate(64);
  const auto last = static_cast<std::uint16_t>(guest.ring(ring).size - 1);
  guest.set_descriptor(ring, last, data, 64, false, true);
  guest.offer(ring, last);
  guest.kick(ring);
}

void offer_outside(SocketGuest& guest, unsigned ring) {
  guest.set_descriptor(ring, 0, 1ull << 40, 64, false, false);
  guest.offer(ring, 0);
  guest.kick(ring);
}

void offer_bad_head(SocketGuest& guest, unsigned ring) {
  guest.offer(ring, guest.ring(ring).size);
  guest.kick(ring);
}

// --- descriptors that block ---

TEST(Backend, ACallDescriptorMadeBlockingStopsNobody) {
  Backend backend;
  DiskGuest bad{backend.add_disk(ram("bad")), queues}, good{backend.add_disk(ram("good")), queues};
  for (unsigned queue = 0; queue < queues; ++queue) saturate(bad->ring(queue).call);
  for (int round = 0; round < 20; ++round) {
    EXPECT_TRUE(all_served(bad));
    EXPECT_TRUE(all_served(good));
  }
  EXPECT_GT(backend.queue("bad", 0).calls, 0u);
  for (unsigned queue = 0; queue < queues; ++queue) {
    const auto position = bad->frontend().get_vring_base(queue);
    ASSERT_TRUE(position.has_value());
    EXPECT_EQ(*position, 40u);
  }
  EXPECT_TRUE(all_served(good));
}

TEST(Backend, ACallDescriptorOfANicMadeBlockingStopsNobody) {
  Backend backend;
  NicGuest bad{backend.add_nic({.name = "bad"}), 1}, peer{backend.add_nic({.name = "peer"}), 2};
  NicGuest good{backend.add_nic({.name = "good"}), 3};
  for (unsigned ring = 0; ring < 2; ++ring) saturate(bad->ring(ring).call);
  for (int round = 0; round < 10; ++round) {
    EXPECT_TRUE(talk(bad, peer));
    EXPECT_TRUE(talk(good, peer));
  }
  for (unsigned ring = 0; ring < 2; ++ring) {
    EXPECT_TRUE(bad->frontend().get_vring_base(ring).has_value());
  }
  EXPECT_TRUE(talk(good, peer));
}

TEST(Backend, AnErrorDescriptorMadeBlockingStopsNobody) {
  Backend backend;
  DiskGuest bad{backend.add_disk(ram("bad")), queues}, good{backend.add_disk(ram("good")), queues};
  const base::Fd error{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  for (unsigned queue = 0; queue < queues; ++queue) {
    ASSERT_TRUE(bad->frontend().get_vring_base(queue).has_value());
    ASSERT_TRUE(bad->frontend().set_vring_err(queue, error.get()).has_value());
    ASSERT_TRUE(bad->start_ring(queue).has_value());
  }
  saturate(error);
  for (unsigned queue = 0; queue < queues; ++queue) {
    offer_outside(*bad, queue);
    EXPECT_EQ(backend.fault_of("bad", queue), Fault::address_outside_memory);
    EXPECT_TRUE(all_served(good));
  }
  for (unsigned queue = 0; queue < queues; ++queue) {
    EXPECT_TRUE(bad->frontend().get_vring_base(queue).has_value());
  }
  EXPECT_TRUE(all_served(good));
}

// --- memory that goes away ---

// Truncates the memory of `guest` while requests are on their way. Nothing may touch it any more.
void truncate_under_requests(DiskGuest& guest) {
  for (unsigned queue = 0; queue < queues; ++queue) {
    for (unsigned slot = 0; slot < 20; ++slot) {
      const auto sector = DiskGuest::sector_of(queues + 20 * queue + slot);  // its own
      guest.submit(queue, slot, slot % 2 == 0 ? BlkType::in : BlkType::out, sector);
    }
    guest->kick(queue);
  }
  ASSERT_EQ(::ftruncate(guest->memory_fd(), 0), 0);
  for (unsigned queue = 0; queue < queues; ++queue) guest->kick(queue);
}

void lose_disk_memory(Backend& backend, const blk::Config& config) {
  const auto socket = backend.add_disk(config);
  DiskGuest good{backend.add_disk(ram("good")), queues};
  for (int round = 0; round < 4; ++round) {
    DiskGuest bad{socket, queues};
    EXPECT_TRUE(all_served(bad));
    truncate_under_requests(bad);
    for (unsigned queue = 0; queue < queues; ++queue) {
      EXPECT_EQ(backend.fault_of(config.name, queue), Fault::memory_lost);
    }
    EXPECT_TRUE(all_served(good));
    if (round % 2 == 0) continue;  // hangs up as it is
    for (unsigned queue = 0; queue < queues; ++queue) {
      EXPECT_TRUE(bad->frontend().get_vring_base(queue).has_value());
      EXPECT_FALSE(bad->start_ring(queue).has_value());  // not on what is left
    }
  }
  DiskGuest next{socket, queues};
  EXPECT_TRUE(all_served(next));
  EXPECT_TRUE(all_served(good));
}

TEST(Backend, TruncatedMemoryCostsOnlyItsDevice) {
  Backend backend;
  lose_disk_memory(backend, ram("bad"));
}

TEST(Backend, TruncatedMemoryCostsOnlyItsDeviceWhilePolling) {
  Backend backend{60s};
  lose_disk_memory(backend, ram("bad"));
}

TEST(Backend, TruncatedMemoryUnderAFileCostsOnlyItsDevice) {
  Backend backend;
  const auto path = (backend.folder() / "image").string();
  {
    const base::Fd file{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
    ASSERT_EQ(::ftruncate(file.get(), 1 << 20), 0);
  }
  auto config = ram("bad");
  config.backend = blk::BackendKind::file, config.path = path;
  lose_disk_memory(backend, config);
}

TEST(Backend, TruncatedMemoryOfANicCostsOnlyIt) {
  for (const auto spin : {std::chrono::nanoseconds{50us}, std::chrono::nanoseconds{60s}}) {
    Backend backend{spin};
    const auto socket = backend.add_nic({.name = "bad"});
    NicGuest peer{backend.add_nic({.name = "peer"}), 2}, good{backend.add_nic({.name = "good"}), 3};
    {
      NicGuest bad{socket, 1};
      EXPECT_TRUE(talk(bad, peer));
      const auto mac = bad.mac();
      ASSERT_EQ(::ftruncate(bad->memory_fd(), 0), 0);
      EXPECT_TRUE(peer.send(0, mac));  // into memory that is gone
      for (unsigned ring = 0; ring < 2; ++ring) {
        bad->kick(ring);
        EXPECT_EQ(backend.fault_of("bad", ring), Fault::memory_lost);
      }
      EXPECT_TRUE(talk(good, peer));
      EXPECT_TRUE(bad->frontend().get_vring_base(0).has_value());
    }
    NicGuest next{socket, 4};
    EXPECT_TRUE(talk(next, peer));
    EXPECT_TRUE(talk(good, peer));
  }
}

// --- chains that are none ---

struct Malformed {
  const char* name;
  void (*offer)(SocketGuest& guest, unsigned ring);
  Fault fault;
};

class MalformedChain : public ::testing::TestWithParam<Malformed> {};

TEST_P(MalformedChain, PoisonsItsQueueUntilThatIsStartedAnew) {
  Backend backend;
  const auto socket = backend.add_disk(ram("bad"));
  DiskGuest bad{socket, queues}, good{backend.add_disk(ram("good")), queues};
  const base::Fd error{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  auto& frontend = bad->frontend();
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(frontend.get_vring_base(1).has_value());
    ASSERT_TRUE(frontend.set_vring_err(1, error.get()).has_value());
    ASSERT_TRUE(bad->start_ring(1).has_value());
    EXPECT_TRUE(all_served(bad));
    GetParam().offer(*bad, 1);
    EXPECT_TRUE(signalled(error));
    EXPECT_EQ(backend.fault_of("bad", 1), GetParam().fault);
    std::uint64_t errors = 0;
    ASSERT_EQ(::read(error.get(), &errors, sizeof errors), static_cast<ssize_t>(sizeof errors));
    EXPECT_EQ(errors, 1u);
    for (const unsigned queue : {0u, 2u, 3u}) {
      EXPECT_TRUE(bad.served(queue));
      EXPECT_EQ(backend.queue("bad", queue).fault, Fault::none);
    }
    EXPECT_TRUE(all_served(good));
    bad->kick(1);
    EXPECT_FALSE(bad->wait(1, 5ms).has_value());
  }
  ASSERT_TRUE(frontend.get_vring_base(1).has_value());
  ASSERT_TRUE(bad->start_ring(1).has_value());
  EXPECT_EQ(backend.queue("bad", 1).fault, Fault::none);
  EXPECT_TRUE(all_served(bad));
}

TEST_P(MalformedChain, IsForgottenWithItsSession) {
  Backend backend;
  const auto socket = backend.add_disk(ram("bad"));
  DiskGuest good{backend.add_disk(ram("good")), queues};
  {
    DiskGuest bad{socket, queues};
    for (unsigned queue = 0; queue < queues; ++queue) {
      GetParam().offer(*bad, queue);
      EXPECT_EQ(backend.fault_of("bad", queue), GetParam().fault);
    }
    EXPECT_TRUE(all_served(good));
  }
  DiskGuest next{socket, queues};
  EXPECT_TRUE(all_served(next));
  EXPECT_TRUE(all_served(good));
}

TEST_P(MalformedChain, OfANicPoisonsItsQueueOnly) {
  Backend backend;
  NicGuest bad{backend.add_nic({.name = "bad"}), 1}, peer{backend.add_nic({.name = "peer"}), 2};
  NicGuest good{backend.add_nic({.name = "good"}), 3};
  EXPECT_TRUE(talk(bad, peer));
  GetParam().offer(*bad, 1);
  EXPECT_EQ(backend.fault_of("bad", 1), GetParam().fault);
  EXPECT_TRUE(talk(good, peer));
  EXPECT_TRUE(peer.send(0, bad.mac()) && bad.received(0, peer.mac()));  // it still receives
  ASSERT_TRUE(bad->frontend().get_vring_base(1).has_value());
  ASSERT_TRUE(bad->start_ring(1).has_value());
  EXPECT_TRUE(talk(bad, peer));
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, MalformedChain,
    ::testing::Values(Malformed{"PastTheTable", offer_past_the_table, Fault::head_out_of_range},
                      Malformed{"OutsideMemory", offer_outside, Fault::address_outside_memory},
                      Malformed{"BadHead", offer_bad_head, Fault::head_out_of_range}),
    [](const auto& which) { return std::string{which.param.name}; });

}  // namespace
}  // namespace millrace::tests

// Queues that start, stop, move and multiply over real sockets while others are served.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <set>
#include <thread>

#include "tests/backend_guest.hpp"
#include "tests/backend_rig.hpp"
#include "virtio/features.hpp"
#include "virtio/limits.hpp"

namespace millrace::tests {
namespace {

using virtio::Fault;
using wire::BlkType;

namespace protocol = vhost::wire::protocol;
constexpr auto usual_protocol = protocol::mq | protocol::reply_ack | protocol::config;

// A tenant of its own, or one queue of a guest, that is served until this goes out of scope.
class Traffic {
 public:
  Traffic(DiskGuest& guest, unsigned queue)
      : thread_{[this, &guest, queue] {
          while (!stop_ && good_) {
            good_ = guest.served(queue);
            ++rounds_;
          }
        }} {
    while (rounds_ == 0) std::this_thread::yield();
  }
  ~Traffic() {
    stop_ = true;
    thread_.join();
    EXPECT_TRUE(good_);
  }
  Traffic(const Traffic&) = delete;
  Traffic& operator=(const Traffic&) = delete;

 private:
  std::atomic<bool> stop_ = false, good_ = true;
  std::atomic<unsigned> rounds_ = 0;
  std::thread thread_;
};

// --- memory slots ---

constexpr std::uint64_t slot_size = 64 << 10, slots_base = 1ull << 32;
constexpr unsigned slots = virtio::limits::memory_slots_max - 1;  // the guest's own is one

// One file, a slot for each piece of it, far above the guest's own memory.
class Slots {
 public:
  Slots() : file_{::memfd_create("millrace-slots", MFD_CLOEXEC)} {
    CHECK(::ftruncate(file_.get(), (slots + 1) * slot_size) == 0);
  }
  [[nodiscard]] vhost::Frontend::Region at(unsigned slot) const {
    const auto offset = slot * slot_size;
    return {.guest_address = slots_base + 2 * offset,  // no two adjoin
            .size = slot_size,
            .user_address = 0x6000'0000'0000 + 2 * offset,
            .file_offset = offset,
            .fd = file_.get()};
  }
  [[nodiscard]] std::byte first_byte(unsigned slot) const {
    std::byte out{};
    CHECK(::pread(file_.get(), &out, 1, static_cast<off_t>(slot * slot_size)) == 1);
    return out;
  }
  void set_first_byte(unsigned slot, std::byte value) const {
    CHECK(::pwrite(file_.get(), &value, 1, static_cast<off_t>(slot * slot_size)) == 1);
  }
  // How often this process, and so the back-end, has a part of the file mapped.
  [[nodiscard]] static unsigned mapped() {
    std::ifstream maps{"/proc/self/maps"};
    unsigned count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.find("millrace-slots") != std::string::npos ? 1 : 0;
    }
    return count;
  }

 private:
  base::Fd file_;
};

TEST(Backend, MemorySlotsComeAndGoUnderRunningRings) {
  Backend backend;
  auto config = DiskGuest::usual(2);
  config.protocol |= protocol::configure_mem_slots;
  const auto socket = backend.add_disk(ram_disk("disk", 2));
  DiskGuest disk{socket, config};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  const Slots memory;
  auto& frontend = disk->frontend();
  ASSERT_EQ(frontend.get_max_mem_slots().value(), slots + 1);
  {
    const Traffic mine{disk, 0}, others{other, 0};
    for (unsigned slot = 0; slot < slots; ++slot) {
      ASSERT_TRUE(frontend.add_mem_reg(memory.at(slot)).has_value()) << slot;
    }
    EXPECT_EQ(backend.session("disk").memory_regions, slots + 1);
    EXPECT_FALSE(frontend.add_mem_reg(memory.at(slots)).has_value());
    for (const unsigned slot : {0u, 1u, slots / 2, slots - 1}) {
      memory.set_first_byte(slot, std::byte{0xee});
      disk.submit_at(1, 0, BlkType::in, 64, memory.at(slot).guest_address);
      disk->kick(1);
      EXPECT_EQ(disk.answer(1, 0), 0);
      EXPECT_EQ(memory.first_byte(slot), std::byte{0});
    }
    for (unsigned slot = 0; slot < slots; slot += 2) {
      ASSERT_TRUE(frontend.rem_mem_reg(memory.at(slot)).has_value()) << slot;
    }
    for (unsigned slot = 1; slot < slots; slot += 2) {
      ASSERT_TRUE(frontend.rem_mem_reg(memory.at(slot)).has_value()) << slot;
    }
    EXPECT_EQ(backend.session("disk").memory_regions, 1u);
    EXPECT_EQ(Slots::mapped(), 0u);
  }
  EXPECT_TRUE(disk.served(1));
}

TEST(Backend, AMemorySlotThatWasRemovedIsOutOfReach) {
  Backend backend;
  auto config = DiskGuest::usual(2);
  config.protocol |= protocol::configure_mem_slots;
  DiskGuest disk{backend.add_disk(ram_disk("disk", 2)), config};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  const Traffic mine{disk, 0}, others{other, 0};
  const Slots memory;
  const auto sector = DiskGuest::sector_of(1);  // not the one that the traffic writes
  auto& frontend = disk->frontend();
  for (int round = 0; round < 5; ++round) {
    for (const unsigned slot : {3u, 4u, 5u}) {
      ASSERT_TRUE(frontend.add_mem_reg(memory.at(slot)).has_value());
      memory.set_first_byte(slot, std::byte{0xee});
    }
    ASSERT_TRUE(frontend.rem_mem_reg(memory.at(4)).has_value());
    disk.submit_at(1, 0, BlkType::in, sector, memory.at(5).guest_address);
    disk->kick(1);
    EXPECT_EQ(disk.answer(1, 0), 0);
    EXPECT_EQ(Slots::mapped(), 2u);
    disk.submit_at(1, 0, BlkType::in, sector, memory.at(4).guest_address);
    disk->kick(1);
    EXPECT_EQ(backend.fault_of("disk", 1), Fault::address_outside_memory);
    EXPECT_FALSE(disk->wait(1, 0ms).has_value());
    EXPECT_EQ(memory.first_byte(4), std::byte{0xee});
    ASSERT_TRUE(frontend.get_vring_base(1).has_value());
    EXPECT_EQ(backend.queue("disk", 0).fault, Fault::none);
    ASSERT_TRUE(disk->start_ring(1).has_value());
    EXPECT_TRUE(disk.served(1));
    for (const unsigned slot : {3u, 5u}) {
      ASSERT_TRUE(frontend.rem_mem_reg(memory.at(slot)).has_value());
    }
  }
}

// --- many queues ---

// Sends flow after flow until each of `wanted` has received one frame.
void reach_pairs(NicGuest& from, NicGuest& to, std::set<unsigned> wanted, unsigned pairs) {
  for (std::uint16_t flow = 0; flow < 20'000 && !wanted.empty(); ++flow) {
    ASSERT_TRUE(from.send(0, to.mac(), flow));
    for (bool found = false; !found;) {
      for (unsigned pair = 0; pair < pairs; ++pair) {
        const auto mine = to.take(pair, from.mac(), 0ms);
        if (!mine) continue;
        EXPECT_TRUE(*mine);
        wanted.erase(pair);
        found = true;
      }
    }
  }
  EXPECT_TRUE(wanted.empty());
}

void run_all_pairs(bool control) {
  constexpr auto control_bit = wire::net_feature::ctrl_vq;
  Backend backend;
  net::Config config{.name = "many"};
  config.pairs = control ? 127 : 128;
  config.control_queue = control;
  const auto socket = backend.add_nic(config);
  const GuestConfig guest{.rings = 2 * config.pairs + (control ? 1 : 0),
                          .size = 8,
                          .features = wire::net_feature::mq | (control ? control_bit : 0),
                          .memory = 16 << 20};
  NicGuest many{socket, guest, 1}, peer{backend.add_nic({.name = "peer"}), 2};
  NicGuest good{backend.add_nic({.name = "good"}), 3};
  EXPECT_EQ((many->features() & control_bit) != 0, control);
  EXPECT_EQ(many->frontend().get_queue_num().value(), guest.rings);
  for (unsigned ring = 0; ring < guest.rings; ++ring) {
    EXPECT_TRUE(backend.queue("many", ring).enabled) << ring;
  }
  if (control) {  // all pairs, by the control queue: the driver begins with one
    const auto ring = guest.rings - 1;
    const auto command = many->allocate(8);
    const std::array<std::uint8_t, 4> set{wire::net_class::mq, wire::net_mq_command::vq_pairs_set,
                                          static_cast<std::uint8_t>(config.pairs), 0};
    std::memcpy(many->at(command), set.data(), set.size());
    *many->at(command + 4) = std::byte{0xff};
    many->set_descriptor(ring, 0, command, 4, false, true);
    many->set_descriptor(ring, 1, command + 4, 1, true, false);
    many->offer(ring, 0);
    many->kick(ring);
    ASSERT_TRUE(many->wait(ring, patience).has_value());
    EXPECT_EQ(*many->at(command + 4), std::byte{wire::net_control_ok});
  }
  const unsigned last = config.pairs - 1, some = 77;
  for (const unsigned pair : {0u, last, some}) {
    EXPECT_TRUE(many.send(pair, peer.mac()) && peer.received(0, many.mac())) << pair;
  }
  reach_pairs(peer, many, {0, last, some}, config.pairs);
  EXPECT_TRUE(talk(good, peer));
}

TEST(Backend, A128QueuePairsAtOnce) {
  run_all_pairs(false);
}

TEST(Backend, A127QueuePairsAndAControlQueueAtOnce) {
  run_all_pairs(true);
}

TEST(Backend, ManyQueuesOfADiskOverTwoReactors) {
  constexpr unsigned many = 64;
  Backend backend;
  auto config = DiskGuest::usual(many);
  config.memory = 8 << 20;
  DiskGuest disk{backend.add_disk(ram_disk("disk", many)), config};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  const Traffic others{other, 0};
  std::array<unsigned, Backend::reactors> placed{};
  for (unsigned queue = 0; queue < many; ++queue) {
    EXPECT_TRUE(disk.served(queue)) << queue;
    ++placed.at(backend.queue("disk", queue).reactor);
  }
  EXPECT_LE(std::max(placed[0], placed[1]), many / 2 + 1);
}

// --- queues that stop and start ---

TEST(Backend, OneQueueIsStartedAnewWhileOthersRun) {
  Backend backend;
  auto config = DiskGuest::usual(3);
  config.memory = 4 << 20;
  DiskGuest disk{backend.add_disk(ram_disk("disk", 3)), config};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  auto& frontend = disk->frontend();
  const Traffic mine{disk, 1}, others{other, 0};
  for (int round = 0; round < 20; ++round) {
    EXPECT_TRUE(disk.served(0));
    ASSERT_TRUE(frontend.set_vring_enable(0, false).has_value());
    ASSERT_TRUE(disk->start_ring(0).has_value());
    EXPECT_TRUE(disk.served(0));
    ASSERT_TRUE(frontend.get_vring_base(0).has_value());
    ASSERT_TRUE(disk->start_ring(0).has_value());
  }
  EXPECT_TRUE(disk.served(2));
}

TEST(Backend, AReceiveQueueIsStartedAnewWhileOthersRun) {
  Backend backend;
  NicGuest nic{backend.add_nic({.name = "nic"}), {.rings = 2, .size = 16, .memory = 4 << 20}, 1};
  NicGuest peer{backend.add_nic({.name = "peer"}), 2}, good{backend.add_nic({.name = "good"}), 3};
  for (int round = 0; round < 10; ++round) {
    EXPECT_TRUE(talk(nic, peer));
    ASSERT_TRUE(nic->frontend().set_vring_enable(0, false).has_value());
    EXPECT_TRUE(nic.send(0, peer.mac()) && peer.received(0, nic.mac()));
    EXPECT_TRUE(talk(good, peer));
    ASSERT_TRUE(nic->start_ring(0).has_value());
    nic.fill(0);
  }
}

// After `reset` nothing is served, and a new start is all that it needs.
void reset_by(const std::function<base::Result<void>(vhost::Frontend&)>& reset) {
  Backend backend;
  auto config = DiskGuest::usual(2);
  config.protocol |= protocol::reset_device | protocol::status;
  DiskGuest disk{backend.add_disk(ram_disk("disk", 2)), config};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  const Traffic others{other, 0};
  auto& frontend = disk->frontend();
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(frontend.set_status(0x0f).has_value());
    EXPECT_TRUE(disk.served(0) && disk.served(1));
    ASSERT_TRUE(reset(frontend).has_value());
    EXPECT_EQ(frontend.get_status().value(), 0u);
    for (unsigned queue = 0; queue < 2; ++queue) {
      EXPECT_FALSE(backend.queue("disk", queue).started);
      disk.submit(queue, 0, BlkType::in, DiskGuest::sector_of(queue));
      disk->kick(queue);
      EXPECT_FALSE(disk->wait(queue, 2ms).has_value());
    }
    for (unsigned queue = 0; queue < 2; ++queue) {
      ASSERT_TRUE(disk->start_ring(queue).has_value());
    }
  }
  EXPECT_TRUE(disk.served(0) && disk.served(1));
}

TEST(Backend, ResetDeviceStopsAllQueuesUntilTheyStartAgain) {
  reset_by([](vhost::Frontend& frontend) { return frontend.reset_device(); });
}

TEST(Backend, StatusZeroStopsAllQueuesUntilTheyStartAgain) {
  reset_by([](vhost::Frontend& frontend) { return frontend.set_status(0); });
}

TEST(Backend, KicksBeforeEnableAreNotLost) {
  Backend backend;
  auto config = DiskGuest::usual();
  config.enable = false;
  DiskGuest disk{backend.add_disk(ram_disk("disk")), config};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  disk.submit(0, 0, BlkType::in, 0);
  disk->kick(0);
  EXPECT_TRUE(other.served());
  EXPECT_FALSE(disk->wait(0, 5ms).has_value());
  ASSERT_TRUE(disk->frontend().set_vring_enable(0, true).has_value());
  EXPECT_EQ(disk.answer(0, 0), 0);
  EXPECT_TRUE(disk.served());
}

// --- habits of front-ends ---

struct Habit {
  const char* name;
  GuestConfig config;
};

class Habits : public ::testing::TestWithParam<Habit> {};

TEST_P(Habits, AreServed) {
  Backend backend;
  const auto socket = backend.add_disk(ram_disk("disk", 2));
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  const Traffic others{other, 0};
  for (int session = 0; session < 3; ++session) {
    DiskGuest disk{socket, GetParam().config};
    for (int round = 0; round < 5; ++round) EXPECT_TRUE(disk.served(0) && disk.served(1));
    ASSERT_TRUE(disk->frontend().get_vring_base(0).has_value());
    ASSERT_TRUE(disk->start_ring(0).has_value());
    EXPECT_TRUE(disk.served(0) && disk.served(1));
  }
}

constexpr std::uint64_t high = 0x5000'0000'0000;
INSTANTIATE_TEST_SUITE_P(
    Of, Habits,
    ::testing::Values(
        Habit{"Usual", {.rings = 2, .size = 64}},
        Habit{"NoKickDescriptors", {.rings = 2, .size = 64, .polled = true}},
        Habit{"NoReplyAck",
              {.rings = 2, .size = 64, .protocol = usual_protocol & ~protocol::reply_ack}},
        Habit{"GuestAddressesAreUserAddresses",
              {.rings = 2, .size = 64, .base = high, .same_addresses = true}},
        Habit{"EventIndex", {.rings = 2, .size = 64, .features = virtio::feature::event_idx}}),
    [](const auto& which) { return std::string{which.param.name}; });

}  // namespace
}  // namespace millrace::tests

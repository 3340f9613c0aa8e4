// A device that receives into a guest's own buffers: where frames land, in which order the guest
// gets them, and what it has back when the device is stopped.
#include <gtest/gtest.h>

#include "daemon/eal.hpp"
#include "net/rx_port.hpp"
#include "switch/ethdev_queue.hpp"
#include "switch/region_swap.hpp"
#include "switch/testing/ring_nic.hpp"
#include "switch/testing/switchboard.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;
using virtio::testing::FakeDriver;

constexpr std::uint32_t header = 12, room = 1536, frame_bytes = 300;
constexpr std::uint64_t iova = 0x4000'0000;

PortConfig alone() {
  PortConfig config;
  config.alone = true;
  return config;
}

// A guest's receive queue of 64 buffers, split or packed, on a running reactor, and a NIC with a
// ring of 32.
class Direct : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const auto started = daemon::start_eal(128);
    if (!started) GTEST_SKIP() << started.error().message;
    wire = board.port(wire_config), guest = board.port(guest_config);
    board.finish([&](auto done) { board.fabric().pair(wire, guest, done); });
    side = {&board.fabric().bridge(0), &board.counters(guest)};
    nic = std::make_unique<RingNic>();
    nic->start();
    auto config = nic->queue();
    config.vlan_strip = !wire_config.trunk.empty();
    queue = std::make_unique<EthdevQueue>(config, board.pool().at(0), board.fabric().bridge(0),
                                          board.counters(wire), wire);
    driver = std::make_unique<FakeDriver>(virtio::testing::DriverConfig{
        .size = 64,
        .packed = GetParam(),
        .features = virtio::feature::version_1 | virtio::wire::net_feature::guest_csum |
                    virtio::wire::net_feature::mrg_rxbuf |
                    (GetParam() ? virtio::feature::ring_packed : 0)});
    map();
    start_port(driver->start(0, true));
  }
  void TearDown() override {
    if (!port) return;
    take_all_back();
    stop_port();
    nic.reset();
  }

  void start_port(virtio::QueueStart start) {
    port = std::make_unique<net::RxPort>(*virtio::Queue::open(std::move(start)), driver->features(),
                                         std::uint16_t{0}, net::SwitchSides{&side, 1});
    port->be_direct();
    board.on(0, [&] { port->attached(board.pool().at(0)); });
    board.finish([&](auto done) { board.fabric().add_endpoint(guest, 0, 0, port.get(), done); });
  }
  std::uint32_t stop_port() {
    board.finish([&](auto done) { board.fabric().remove_endpoint(guest, 0, done); });
    std::uint32_t position = 0;
    board.on(0, [&] {
      port->quiesce();
      EXPECT_TRUE(port->drained());
      port->detached(board.pool().at(0));
      position = port->queue().position();
    });
    port.reset();
    return position;
  }
  void start() {
    board.on(0, [&] {
      queue->tie(*port, guest_config.access_vlan);
      queue->start();
    });
  }
  // As control does it.
  bool halt() {
    bool out = false;
    board.on(0, [&] { out = queue->halt(); });
    return out;
  }
  void take_all_back() {
    halt();
    nic->stop();
    board.on(0, [&] {
      queue->abandon();
      queue->untie();
    });
  }

  // Each region of the guest's lies in a piece of the device's addresses of its own.
  void map() {
    std::vector<DmaRegion> regions;
    for (const auto& region : driver->memory()->regions()) {
      const auto begin = reinterpret_cast<std::uintptr_t>(region.mapping->data());
      regions.push_back({begin, begin + region.size, iova + 0x1000'0000 * regions.size(), {}});
    }
    nic->map(regions);
    swap(std::make_shared<const DmaRegions>(std::move(regions)));
    board.wait([&] { return swapped; });
  }
  void swap(std::shared_ptr<const DmaRegions> regions) {
    swapped = false;
    board.pool().post(
        0, std::make_unique<RegionSwap>(*queue, std::move(regions), [this] { swapped = true; }));
  }

  void post(unsigned count, std::uint32_t size = room) {
    for (unsigned i = 0; i < count; ++i) {
      const auto at = driver->allocate(size);
      const auto id = driver->add({}, {{at, size}});
      ASSERT_TRUE(id);
      at_[*id] = at;
    }
    static_cast<void>(driver->publish());
  }
  Bytes bytes_of(unsigned number, std::uint32_t size = frame_bytes) {
    Bytes out = plain_frame(mac(1), mac(2), static_cast<std::uint8_t>(number), size);
    EXPECT_EQ(out.size(), size);
    return out;
  }
  // True: it came, to a buffer of the guest's. All frames are numbered.
  bool receive() {
    std::byte* at = nullptr;
    board.wait([&] { return (at = nic->frame(bytes_of(sent), sent % 2 == 0, tag)) != nullptr; });
    ++sent;
    return lies_in_guest(at);
  }
  bool lies_in_guest(const std::byte* at) const {
    for (const auto& region : driver->memory()->regions()) {
      const auto* begin = region.mapping->data();
      if (at >= begin && at < begin + region.size) return true;
    }
    return false;
  }
  // The guest finds the next so many frames, whole, in their order and behind their headers.
  void find(unsigned count, unsigned post_again = 0) {
    for (unsigned i = 0; i < count; ++i) {
      std::optional<virtio::testing::Used> used;
      board.wait([&] { return (used = driver->poll()).has_value(); });
      if (!used) return;
      ASSERT_EQ(used->length, header + frame_bytes) << "frame " << found;
      const auto* begin = driver->at(at_[used->id], used->length);
      virtio::wire::NetHeader got;
      std::memcpy(&got, begin, sizeof got);
      EXPECT_EQ(got.num_buffers.host(), 1);
      EXPECT_EQ(got.flags != 0, found % 2 == 0);
      const auto wanted = bytes_of(found++);
      EXPECT_EQ(std::memcmp(begin + header, wanted.data(), wanted.size()), 0) << found;
    }
    post(post_again);
  }
  const DirectReceive::Figures& figures() const { return queue->direct()->figures(); }
  // All mbufs of the NIC's ring lie in the guest's memory.
  void until_all_lie_in_guest() {
    board.wait([&] { return figures().placing.get() == 1; });
    for (unsigned i = 0; i < RingNic::ring; ++i) {
      receive();
      find(1, 1);
    }
    EXPECT_EQ(nic->at_home(), 0u);
  }

  PortConfig wire_config = alone(), guest_config = alone();
  std::optional<std::uint16_t> tag;  // of the frames that come
  Switchboard board;
  PortId wire = no_port, guest = no_port;
  net::SwitchSide side;
  std::unique_ptr<RingNic> nic;
  std::unique_ptr<FakeDriver> driver;
  std::unique_ptr<net::RxPort> port;
  std::unique_ptr<EthdevQueue> queue;
  std::map<unsigned, std::uint64_t> at_;  // guest addresses of buffers, by id
  unsigned sent = 0, found = 0;
  bool swapped = false;
};
INSTANTIATE_TEST_SUITE_P(Formats, Direct, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

TEST_P(Direct, TheDeviceWritesIntoTheGuestsBuffers) {
  post(64);
  start();
  until_all_lie_in_guest();
  EXPECT_EQ(figures().copied_begun.get(), std::uint64_t{RingNic::ring});
  for (unsigned i = 0; i < 70; ++i) {
    EXPECT_TRUE(receive());
    find(1, 1);
  }
  EXPECT_EQ(figures().zero_copy_packets.get(), 70u);
  EXPECT_EQ(figures().zero_copy_bytes.get(), 70u * frame_bytes);
  EXPECT_EQ(board.counters(guest).rx_packets.get(), 70u + RingNic::ring);
  EXPECT_EQ(nic->faults, 0u);
}

// From where the device wrote it, before the guest is told; what is copied is as ever.
TEST_P(Direct, AMirrorHasTheFramesInTheirOrder) {
  const PortId watcher = board.port({});
  auto& end = board.endpoint(watcher);
  const auto mirror = [&](const std::vector<PortId>& from) {
    board.finish([&](auto done) {
      ASSERT_TRUE(board.fabric().add_mirror({from, watcher, MirrorDirection::both}, done));
    });
  };
  mirror({guest, wire});
  post(64);
  start();
  board.wait([&] { return figures().placing.get() == 1; });
  const auto receive_some = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      const unsigned number = sent;
      board.on(0, [&] { end.clear(); });
      receive();
      find(1, 1);
      board.on(0, [] {});
      ASSERT_EQ(end.received, 1u);
      EXPECT_EQ(end.frame(0), bytes_of(number));
    }
  };
  receive_some(RingNic::ring + 20);
  EXPECT_EQ(figures().copied_begun.get(), std::uint64_t{RingNic::ring});
  EXPECT_EQ(figures().zero_copy_packets.get(), 20u);
  board.finish([&](auto done) { board.fabric().remove_mirror(watcher, done); });
  board.on(0, [&] { end.clear(); });
  for (unsigned i = 0; i < 5; ++i) {
    receive();
    find(1, 1);
  }
  EXPECT_EQ(end.received, 0u);
  mirror({wire});
  receive_some(5);
  EXPECT_EQ(figures().zero_copy_packets.get(), 30u);
  EXPECT_EQ(nic->faults, 0u);
}

TEST_P(Direct, BuffersThatWereNotFilledGoBack) {
  post(64);
  start();
  until_all_lie_in_guest();
  receive();
  receive();
  EXPECT_TRUE(halt());  // takes in what is there
  find(2);
  nic->stop();
  board.on(0, [&] {
    queue->abandon();
    queue->untie();
  });
  const auto position = stop_port();
  const auto place = driver->used_place();
  const auto used =
      GetParam() ? place.index | (place.wrap ? 0x8000u : 0u) : std::uint32_t{place.index};
  EXPECT_EQ(position & 0xffff, used);
  // Whoever goes on from there gets those buffers, in the guest's order.
  auto again = driver->start(0, true);
  again.ring.base = position;
  start_port(std::move(again));
  nic->start();
  start();
  for (unsigned i = 0; i < 40; ++i) {
    receive();
    find(1, 1);
  }
  EXPECT_GT(figures().zero_copy_packets.get(), 5u);
}

TEST_P(Direct, FramesWaitForBuffers) {
  post(40);
  start();
  board.wait([&] { return figures().placing.get() == 1; });
  for (unsigned i = 0; i < 8; ++i) receive();  // those take the last eight
  find(8);
  for (unsigned i = 0; i < 5; ++i) receive();
  board.wait([&] { return figures().no_buffer.get() != 0; });
  EXPECT_FALSE(driver->poll());
  post(8);
  find(5);
}

TEST_P(Direct, TooFewBuffersAreCopiedInto) {
  post(RingNic::ring - 1);
  start();
  for (unsigned i = 0; i < 10; ++i) receive();
  find(10);
  EXPECT_EQ(figures().copied_few.get(), 10u);
  EXPECT_EQ(figures().zero_copy_packets.get(), 0u);
}

TEST_P(Direct, SmallBuffersAreCopiedIntoAndLargeOnesReceivedIntoAgain) {
  post(64);
  start();
  until_all_lie_in_guest();
  // What lies in the NIC's ring and behind it comes first; then small ones.
  for (unsigned i = 0; i < 64; ++i) {
    receive();
    find(1);
    post(1, 512);
  }
  EXPECT_EQ(figures().placing.get(), 0u);
  for (unsigned i = 0; i < 20; ++i) {
    EXPECT_FALSE(receive());
    find(1, 1);
  }
  EXPECT_GE(figures().copied_small.get(), 20u);
  for (unsigned i = 0; i < 44; ++i) {
    receive();
    find(1, 1);
  }
  until_all_lie_in_guest();
  EXPECT_TRUE(receive());
  find(1);
}

TEST_P(Direct, MemoryThatTheDeviceDoesNotReachIsCopiedInto) {
  post(64);
  swap(std::make_shared<const DmaRegions>());
  start();
  for (unsigned i = 0; i < 5; ++i) receive();
  find(5, 5);
  EXPECT_EQ(figures().copied_unmapped.get(), 5u);
  map();
  until_all_lie_in_guest();
  // What the device may still write to is not unmapped.
  swap(std::make_shared<const DmaRegions>());
  for (int i = 0; i < 20; ++i) board.on(0, [] {});
  EXPECT_FALSE(swapped);
  halt();
  EXPECT_FALSE(swapped);
  nic->stop();
  board.on(0, [&] { queue->abandon(); });
  board.wait([&] { return swapped; });
}

TEST_P(Direct, AQueueThatStopsKeepsNoFrameAndNoBuffer) {
  post(64);
  start();
  until_all_lie_in_guest();
  board.on(0, [&] { port->quiesce(); });
  for (unsigned i = 0; i < 3; ++i) receive();
  board.wait([&] { return board.counters(guest).drop_no_queue.get() == 3; });
  EXPECT_FALSE(driver->poll());
  take_all_back();
  const auto position = stop_port();
  EXPECT_EQ(position & 0x7fff, driver->used_place().index & 0x7fff);
  start_port(driver->start(0, true));
}

TEST_P(Direct, APageIsLoggedWhenItsFrameIsGiven) {
  post(64);
  start();
  until_all_lie_in_guest();
  const auto end = driver->memory()->guest_end();
  auto bitmap = base::Mapping::anonymous(end / virtio::DirtyLog::page_size / 8 + 8).value();
  auto log = std::make_shared<virtio::DirtyLog>(bitmap);
  board.on(0, [&] { port->queue().swap_log(log); });
  receive();
  std::optional<virtio::testing::Used> used;
  board.wait([&] { return (used = driver->poll()).has_value(); });
  ++found;
  const auto page = at_[used->id] / virtio::DirtyLog::page_size;
  const auto byte = std::to_integer<unsigned>(bitmap->data()[page / 8]);
  EXPECT_NE(byte >> (page % 8) & 1, 0u);
  board.on(0, [&] { port->queue().swap_log(log); });
}

TEST_P(Direct, WhatIsNoFrameTakesItsBufferAlong) {
  post(64);
  start();
  until_all_lie_in_guest();
  ASSERT_NE(nic->frame(Bytes(5)), nullptr);
  std::optional<virtio::testing::Used> used;
  board.wait([&] { return (used = driver->poll()).has_value(); });
  EXPECT_EQ(used->length, 0u);
  EXPECT_EQ(board.counters(wire).drop_malformed.get(), 1u);
  receive();
  find(1);
}

// The wire has tags, which the device takes off, and the guest is in one of its VLANs.
struct DirectVlan : Direct {
  DirectVlan() {
    wire_config.trunk = {10, 20};
    guest_config.access_vlan = 10;
    tag = 0x600a;
  }
  // What is not the guest's takes a buffer of the guest's along.
  void is_dropped(const Bytes& frame, std::optional<std::uint16_t> its) {
    const auto before = board.counters(wire).drop_vlan.get();
    ASSERT_NE(nic->frame(frame, false, its), nullptr);
    std::optional<virtio::testing::Used> used;
    board.wait([&] { return (used = driver->poll()).has_value(); });
    EXPECT_EQ(used->length, 0u);
    EXPECT_EQ(board.counters(wire).drop_vlan.get(), before + 1);
    post(1);
  }
};
INSTANTIATE_TEST_SUITE_P(Formats, DirectVlan, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

TEST_P(DirectVlan, FramesOfItsVlanAreReceivedWithoutACopy) {
  post(64);
  start();
  until_all_lie_in_guest();
  for (unsigned i = 0; i < 40; ++i) {
    EXPECT_TRUE(receive());
    find(1, 1);
  }
  EXPECT_EQ(figures().copied_begun.get(), std::uint64_t{RingNic::ring});
  EXPECT_EQ(figures().zero_copy_packets.get(), 40u);
  EXPECT_EQ(figures().copied_vlan.get(), 0u);
  EXPECT_EQ(figures().untagged.get(), 40u + RingNic::ring);
  // As the wire has them, and as the guest has them.
  const auto count = 40u + RingNic::ring;
  EXPECT_EQ(board.counters(wire).tx_bytes.get(), count * (frame_bytes + 4));
  EXPECT_EQ(board.counters(guest).rx_bytes.get(), count * frame_bytes);
  EXPECT_EQ(board.counters(wire).drop_vlan.get(), 0u);
}

TEST_P(DirectVlan, OthersFramesAreDropped) {
  post(64);
  start();
  board.wait([&] { return figures().placing.get() == 1; });
  const auto others = [&] {
    const auto frame = bytes_of(0);
    is_dropped(frame, 20);            // the wire's, and not the guest's
    is_dropped(frame, 30);            // nobody's
    is_dropped(frame, 0x2000);        // of none
    is_dropped(frame, std::nullopt);  // the same
    is_dropped(tagged(frame, 10, 0x88a8), std::nullopt);
    is_dropped(tagged(frame, 20), std::nullopt);
    is_dropped(Bytes(frame.begin(), frame.begin() + 14), std::nullopt);
  };
  others();  // of those that the device had our memory for
  until_all_lie_in_guest();
  const auto given = board.counters(guest).rx_packets.get();
  const auto received = figures().zero_copy_packets.get();
  others();
  EXPECT_EQ(figures().zero_copy_packets.get(), received);
  EXPECT_EQ(board.counters(guest).rx_packets.get(), given);
  receive();
  find(1, 1);
}

// As a virtual function does whose owner does not take tags off.
TEST_P(DirectVlan, ATagThatTheDeviceLeftIsTakenOut) {
  post(64);
  start();
  const auto come = [&] {
    const auto frame = bytes_of(sent);
    std::byte* at = nullptr;
    board.wait([&] { return (at = nic->frame(tagged(frame, 0xe00a), sent % 2 == 0)) != nullptr; });
    ++sent;
    find(1, 1);
  };
  for (unsigned i = 0; i < RingNic::ring; ++i) come();
  EXPECT_EQ(figures().copied_vlan.get(), 0u);
  for (unsigned i = 0; i < 10; ++i) come();
  EXPECT_EQ(figures().copied_vlan.get(), 10u);
  EXPECT_EQ(figures().zero_copy_packets.get(), 0u);
  EXPECT_EQ(figures().untagged.get(), 0u);
}

TEST_P(DirectVlan, AMirrorShowsTheTag) {
  const PortId watcher = board.port({});
  auto& end = board.endpoint(watcher);
  const auto look_at = [&](PortId from, MirrorDirection direction) {
    board.finish([&](auto done) { board.fabric().remove_mirror(watcher, done); });
    board.finish([&](auto done) {
      ASSERT_TRUE(board.fabric().add_mirror({{from}, watcher, direction}, done));
    });
    board.on(0, [&] { end.clear(); });
  };
  post(64);
  start();
  until_all_lie_in_guest();
  for (const auto from : {wire, guest}) {
    look_at(from, from == wire ? MirrorDirection::in : MirrorDirection::out);
    const unsigned number = sent;
    receive();
    find(1, 1);
    is_dropped(bytes_of(0), 20);
    is_dropped(bytes_of(0), 30);
    is_dropped(bytes_of(0), std::nullopt);
    board.on(0, [] {});
    // What the switch took from the wire may be nobody's.
    ASSERT_EQ(end.received, from == wire ? 2u : 1u);
    EXPECT_EQ(end.frame(0), tagged(bytes_of(number), 0x600a));
    if (from == wire) {
      EXPECT_EQ(end.frame(1), tagged(bytes_of(0), 20));
    }
  }
}

// Until the device has the guest's buffers, and after, frames go by the switch.
TEST_P(DirectVlan, WhatTheSwitchCopiesIsAsWell) {
  post(RingNic::ring - 1);
  start();
  for (unsigned i = 0; i < 10; ++i) receive();
  find(10, 10);
  EXPECT_EQ(figures().copied_few.get(), 10u);
  ASSERT_NE(nic->frame(bytes_of(0), false, 20), nullptr);
  board.wait([&] { return board.counters(wire).drop_vlan.get() == 1; });
  EXPECT_FALSE(driver->poll());
}

}  // namespace
}  // namespace millrace::vswitch

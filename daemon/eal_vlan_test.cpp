// Tags that an uplink's device puts on and takes off: what is on the wire, and what the switch
// makes of what comes, beside the same in software.
#include <gtest/gtest.h>

#include "daemon/eal.hpp"
#include "switch/ethdev_port.hpp"
#include "switch/ethdev_queue.hpp"
#include "switch/gso.hpp"
#include "switch/region_swap.hpp"
#include "switch/testing/switchboard.hpp"
#include "switch/testing/wire_nic.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;
using Abilities = WireNic::Abilities;

class Keeper final : public Completion {
 public:
  std::uint32_t hold(std::uint32_t token) noexcept override {
    ++held;
    return token;
  }
  void release(std::uint32_t) noexcept override { ++released; }
  unsigned held = 0, released = 0;
};

// An uplink in VLANs 10, 20 and 4094; guests in the first two, and one that has tags.
class EthdevVlan : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto started = daemon::start_eal(128);
    if (!started) GTEST_SKIP() << started.error().message;
    nic = std::make_unique<WireNic>();
    PortConfig config;
    config.uplink = true;
    config.trunk = {10, 20, 4094};
    wire = board.port(config);
    config.uplink = false;
    trunk = board.port(config);
    config.trunk.clear();
    config.access_vlan = 10;
    ten = board.port(config);
    config.access_vlan = 20;
    twenty = board.port(config);
    for (const auto port : {trunk, ten, twenty}) ends.push_back(&board.endpoint(port));
  }
  void TearDown() override {
    if (queue) end();
  }
  void begin(const EthdevQueueConfig& config) {
    queue = std::make_unique<EthdevQueue>(config, board.pool().at(0), board.fabric().bridge(0),
                                          board.counters(wire), wire);
    board.finish([&](auto done) { board.fabric().add_endpoint(wire, 0, 0, queue.get(), done); });
    board.on(0, [&] { queue->start(); });
  }
  void begin(const Abilities& abilities) { begin(nic->queue(abilities)); }
  void end() {
    board.finish([&](auto done) { board.fabric().remove_endpoint(wire, 0, done); });
    board.on(0, [&] {
      queue->stop();
      queue->forget_device();
      queue->abandon();
    });
    queue.reset();
  }
  std::vector<WireNic::Sent> send(PortId from, const Bytes& frame,
                                  const std::function<void(Packet&)>& edit = {}) {
    board.send(from, {frame}, 0, edit);
    return nic->sent();
  }
  // To the wire, which nobody is known to be at.
  static Bytes out(unsigned from, std::size_t size) {
    Bytes frame = plain_frame(mac(0x99), mac(from), 3, size);
    for (std::size_t i = 14; i < size; ++i) frame[i] = static_cast<std::uint8_t>(i * 7 + size);
    return frame;
  }
  void receive(const std::vector<Bytes>& frames, bool strips = true, bool verified = false) {
    for (auto* end : ends) board.on(0, [end] { end->clear(); });
    nic->receive(frames, strips, verified);
    board.wait([&] { return nic->received_all(); });
    board.on(0, [] {});
  }
  std::uint64_t counted(base::Counter PortCounters::*which) {
    return (board.counters(wire).*which).get();
  }

  Switchboard board;
  std::unique_ptr<WireNic> nic;
  PortId wire = no_port, trunk = no_port, ten = no_port, twenty = no_port;
  std::vector<FakePort*> ends;  // trunk, ten, twenty
  std::unique_ptr<EthdevQueue> queue;
};

TEST_F(EthdevVlan, TheWireHasTheTagThatSoftwareWouldHavePut) {
  for (const bool insert : {true, false}) {
    begin({.insert = insert});
    const auto bytes = counted(&PortCounters::rx_bytes);
    std::uint64_t sum = 0;
    for (const std::size_t size :
         {60u, 61u, 64u, 120u, 124u, 125u, 128u, 129u, 1000u, 1513u, 1514u}) {
      for (const auto& [from, vlan] : {std::pair{ten, 10u}, {twenty, 20u}}) {
        const auto frame = out(vlan, size);
        const auto sent = send(from, frame);
        ASSERT_EQ(sent.size(), 1u);
        EXPECT_EQ(sent[0].frame(), tagged(frame, vlan)) << size;
        EXPECT_EQ(sent[0].tagged, insert);
        EXPECT_EQ(sent[0].prepared, insert);
        sum += size + 4;
      }
    }
    // With its priority, and what was behind the tag.
    const auto frame = out(5, 300);
    for (const Bytes& each :
         {tagged(frame, 0xeffe), tagged(frame, 0x100a), tagged(tagged(frame, 77), 20)}) {
      const auto sent = send(trunk, each);
      ASSERT_EQ(sent.size(), 1u);
      EXPECT_EQ(sent[0].frame(), each);
      EXPECT_EQ(sent[0].tagged, insert);
      sum += each.size();
    }
    EXPECT_EQ(counted(&PortCounters::rx_bytes) - bytes, sum);
    EXPECT_EQ(queue->figures().tagged.get(), insert ? 25u : 0u);
    end();
  }
}

// The smallest frame that the device gets, whatever it adds, and the longest on the wire.
TEST_F(EthdevVlan, FramesAreAsLongAsTheyMay) {
  auto config = nic->queue({});
  config.frame_max = 1518;
  begin(config);
  auto sent = send(ten, out(10, 42));
  ASSERT_EQ(sent.size(), 1u);
  auto padded = tagged(out(10, 42), 10);
  padded.resize(64);
  EXPECT_EQ(sent[0].frame(), padded);
  sent = send(ten, out(10, 1514));
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].size, 1518u);
  EXPECT_TRUE(send(ten, out(10, 1515)).empty());
  EXPECT_EQ(counted(&PortCounters::drop_too_long), 1u);
}

// Where the L4 header begins is told without the tag that the device adds.
TEST_F(EthdevVlan, OffloadsAreAskedForBehindTheEthernetHeader) {
  begin({.checksum = true, .tso = true});
  for (const bool ipv6 : {false, true}) {
    for (const bool udp : {false, true}) {
      const Shape shape{.ipv6 = ipv6, .udp = udp, .payload = 700};
      const auto frame = make_frame(shape);
      const auto sent = send(ten, frame, [&](Packet& p) { request(p, shape); });
      ASSERT_EQ(sent.size(), 1u);
      EXPECT_EQ(sent[0].frame(), tagged(frame, 10));
      EXPECT_TRUE(sent[0].tagged && sent[0].checksum && sent[0].prepared);
      EXPECT_EQ(sent[0].l2, 14u);
      EXPECT_EQ(sent[0].l3, shape.l3());
    }
    const Shape big{.ipv6 = ipv6, .payload = 5000};
    auto sent = send(ten, make_frame(big),
                     [&](Packet& p) { request(p, big, ipv6 ? Gso::tcp6 : Gso::tcp4, 1400); });
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_TRUE(sent[0].tagged && sent[0].tso);
    EXPECT_EQ(sent[0].l2, 14u);
    EXPECT_EQ(sent[0].l4, 20u);
    EXPECT_EQ(sent[0].segment_size, 1400u);
    // From a guest with tags: the outer one is the device's, the inner one a part of the headers.
    Shape inner{.ipv6 = ipv6, .tags = 2, .payload = 3000};
    sent = send(trunk, make_frame(inner),
                [&](Packet& p) { request(p, inner, ipv6 ? Gso::tcp6 : Gso::tcp4, 1400); });
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_EQ(sent[0].l2, 18u);
    EXPECT_EQ(sent[0].frame(), make_frame(inner));
  }
}

TEST_F(EthdevVlan, SegmentsOfSoftwareEachHaveATag) {
  for (const bool checksum : {false, true}) {
    begin({.checksum = checksum});
    const Shape big{.payload = 5000};
    const auto sent =
        send(ten, make_frame(big), [&](Packet& p) { request(p, big, Gso::tcp4, 1400); });
    ASSERT_EQ(sent.size(), 4u);
    std::size_t payload = 0;
    for (const auto& each : sent) {
      EXPECT_TRUE(each.tagged && each.prepared);
      EXPECT_EQ(each.checksum, checksum);
      auto frame = each.frame();
      EXPECT_EQ(get16(frame, 12), 0x8100u);
      EXPECT_EQ(get16(frame, 14), 10u);
      Shape shape{.tags = 1};
      if (!checksum) {
        EXPECT_EQ(oracle_checksum(frame, 38, frame.size(), pseudo_sum(frame, shape)), 0u);
      }
      payload += frame.size() - shape.headers();
    }
    EXPECT_EQ(payload, 5000u);
    end();
  }
}

TEST_F(EthdevVlan, PayloadsAreLentBehindAHeaderWithoutTheTag) {
  for (const bool insert : {true, false}) {
    begin({.insert = insert, .checksum = true, .tso = true, .zero_copy_min = 512});
    Keeper keeper;
    const auto frame = out(10, 1400);
    Packet packet;
    std::vector<WireNic::Sent> sent;
    const auto forward = [&](const Bytes& bytes) {
      describe(bytes, packet);
      packet.completion = &keeper;
      board.on(0, [&] { board.fabric().bridge(0).forward(ten, {&packet, 1}); });
      sent = nic->sent();
      ASSERT_EQ(sent.size(), 1u);
      EXPECT_EQ(sent[0].frame(), tagged(bytes, 10));
      EXPECT_EQ(sent[0].tagged, insert);
    };
    const auto begun = reinterpret_cast<std::uintptr_t>(frame.data());
    bool swapped = false;
    board.pool().post(
        0, std::make_unique<RegionSwap>(*queue,
                                        std::make_shared<const DmaRegions>(std::vector<DmaRegion>{
                                            {begun, begun + frame.size(), 0x1'0000'0000, {}}}),
                                        [&] { swapped = true; }));
    board.wait([&] { return swapped; });
    forward(frame);  // a device that sent something is lent more
    board.wait([&] {
      forward(frame);
      return keeper.held != 0;
    });
    EXPECT_EQ(sent[0].segments, 2u);
    const auto lent = queue->figures().zero_copy_packets.get();
    EXPECT_NE(lent, 0u);
    board.wait([&] { return keeper.released == keeper.held; });
    end();
  }
}

TEST_F(EthdevVlan, WhatComesIsAsWithItsTagInTheHeader) {
  const auto frame = plain_frame(everybody, mac(0x55), 9, 200);
  const std::vector<Bytes> frames{
      tagged(frame, 0x600a),  // 10, with a priority
      tagged(frame, 20),         tagged(tagged(frame, 10, 0x88a8), 10),
      tagged(frame, 4094),       tagged(frame, 11),  // nobody's
      tagged(frame, 0x2000),  // a priority alone, where there has to be a VLAN
      tagged(frame, 10, 0x88a8), frame};
  std::vector<std::vector<Bytes>> got[2];
  std::array<std::uint64_t, 2> bytes{}, drops{};
  for (const bool strips : {false, true}) {
    const auto bytes_before = counted(&PortCounters::tx_bytes);
    const auto drops_before = counted(&PortCounters::drop_vlan);
    begin({.strip = strips});
    receive(frames, strips);
    for (auto* end : ends) {
      auto& list = got[strips].emplace_back();
      for (std::size_t i = 0; i < end->received; ++i) list.push_back(end->frame(i));
    }
    bytes.at(strips) = counted(&PortCounters::tx_bytes) - bytes_before;
    drops.at(strips) = counted(&PortCounters::drop_vlan) - drops_before;
    EXPECT_EQ(queue->figures().untagged.get(), strips ? 6u : 0u);
    end();
  }
  EXPECT_EQ(got[1], got[0]);
  EXPECT_EQ(bytes[1], bytes[0]);
  EXPECT_EQ(drops[1], drops[0]);
  EXPECT_EQ(drops[1], 4u);
  EXPECT_EQ(got[1][0], (std::vector<Bytes>{frames[0], frames[1], frames[2], frames[3]}));
  EXPECT_EQ(got[1][1], (std::vector<Bytes>{frame, tagged(frame, 10, 0x88a8)}));
  EXPECT_EQ(got[1][2], (std::vector<Bytes>{frame}));
}

// A virtual function's owner takes a tag off that is none of the function's.
TEST_F(EthdevVlan, ATagOfSomebodyElsesIsNone) {
  PortConfig config;
  config.uplink = true;
  const auto untagged_wire = board.port(config), guest = board.port({});
  auto& end_of_guest = board.endpoint(guest);
  auto its = nic->queue({});
  its.vlans = std::make_shared<VlanSet>(VlanSet{}.set(20));
  const auto frame = plain_frame(everybody, mac(0x55), 9, 200);
  begin(its);
  receive({tagged(frame, 10), tagged(frame, 20)});
  EXPECT_EQ(counted(&PortCounters::drop_vlan), 1u);  // on this wire all have tags
  EXPECT_EQ(ends[1]->received, 0u);
  EXPECT_EQ(ends[2]->received, 1u);
  end();
  wire = untagged_wire;
  begin(its);
  receive({tagged(frame, 10), tagged(frame, 0x6000)});
  ASSERT_EQ(end_of_guest.received, 2u);
  EXPECT_EQ(end_of_guest.frame(0), frame);
  EXPECT_EQ(end_of_guest.frame(1), frame);
}

TEST_F(EthdevVlan, FramesAreJoinedWithinTheirVlan) {
  auto config = nic->queue({});
  config.gro = true;
  begin(config);
  Shape shape{.payload = 1000, .tcp_flags = 0x10};
  const auto next = [&shape](unsigned control) {
    Bytes frame = make_frame(shape);
    const std::size_t field = shape.l2() + shape.l3() + 16;
    set16(frame, field, oracle_checksum(frame, shape.l2() + shape.l3(), frame.size()));
    shape.sequence += shape.payload, ++shape.ip_id;
    return tagged(frame, control);
  };
  const std::vector<Bytes> one{next(10), next(10), next(10)};
  receive(one, true, true);
  EXPECT_EQ(ends[1]->received, 1u);
  EXPECT_EQ(ends[1]->frames[0].offload.gso, Gso::tcp4);
  EXPECT_EQ(ends[1]->frames[0].length, 3054u);
  const auto whole = ends[0]->frame(0);  // of the guest with tags
  EXPECT_EQ(get16(whole, 14), 10u);
  EXPECT_EQ(whole.size(), 3058u);
  // One that moves up in its burst takes along that it has no tag.
  const auto drops = counted(&PortCounters::drop_vlan);
  receive({next(10), next(10), plain_frame(everybody, mac(2), 1, 200)}, true, true);
  EXPECT_EQ(ends[1]->received, 1u);
  EXPECT_EQ(counted(&PortCounters::drop_vlan), drops + 1);
  for (const auto& [first, second] : {std::pair{10u, 20u}, {0x200au, 10u}}) {
    const std::vector<Bytes> two{next(first), next(second)};
    receive(two, true, true);
    ASSERT_EQ(ends[0]->received, 2u);
    EXPECT_EQ(ends[0]->frame(0), two[0]);
    EXPECT_EQ(ends[0]->frame(1), two[1]);
  }
}

// net_null has no offload for tags, and says so.
TEST_F(EthdevVlan, ADriverWithoutThemIsAskedForNone) {
  UplinkConfig config;
  config.name = "up", config.device = "net_null_plain,no-rx=1";
  config.port.trunk = {10};
  std::unique_ptr<Uplink> uplink;
  board.finish([&](Fabric::Done done) {
    uplink = *open_uplink(config, board.pool(), board.fabric(), std::move(done));
  });
  const auto offloads = uplink->status().offloads;
  EXPECT_FALSE(offloads.vlan_insert || offloads.vlan_strip || offloads.vlan_filter);
  board.finish([&](Fabric::Done done) { uplink->close(std::move(done)); });
}

}  // namespace
}  // namespace millrace::vswitch

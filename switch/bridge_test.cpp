#include "switch/bridge.hpp"

#include <gtest/gtest.h>

#include "switch/gso.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

PortConfig access(std::uint16_t vlan) {
  PortConfig config;
  config.access_vlan = vlan;
  return config;
}
PortConfig trunk(std::vector<std::uint16_t> vlans, std::uint16_t native = 0) {
  PortConfig config;
  config.trunk = std::move(vlans);
  config.access_vlan = native;
  return config;
}

TEST(Bridge, FloodsWhatItDoesNotKnowThenLearns) {
  Switchboard board;
  std::array<PortId, 3> ports;
  std::array<FakePort*, 3> ends;
  for (unsigned i = 0; i < 3; ++i) ports[i] = board.port({}), ends[i] = &board.endpoint(ports[i]);
  const Bytes question = plain_frame(mac(2), mac(1)), answer = plain_frame(mac(1), mac(2));
  board.send(ports[0], {question});
  EXPECT_EQ(ends[0]->received, 0u);
  EXPECT_EQ(ends[1]->frame(0), question);
  EXPECT_EQ(ends[2]->frame(0), question);
  board.send(ports[1], {answer});
  EXPECT_EQ(ends[0]->frame(0), answer);
  EXPECT_EQ(ends[2]->received, 1u);
  board.send(ports[0], {question});
  EXPECT_EQ(ends[1]->received, 2u);
  EXPECT_EQ(ends[2]->received, 1u);
  EXPECT_EQ(board.counters(ports[0]).tx_packets.get(), 2u);
  EXPECT_EQ(board.counters(ports[0]).tx_bytes.get(), 120u);
}

TEST(Bridge, FloodReachesEveryPortOnceHoweverManyEndpoints) {
  Switchboard board{2};
  const PortId from = board.port({}), other = board.port({});
  std::array<FakePort*, 4> ends;
  for (unsigned slot = 0; slot < 4; ++slot) ends[slot] = &board.endpoint(other, slot % 2, slot);
  board.endpoint(from, 1);
  for (unsigned flow = 0; flow < 40; ++flow) {
    Bytes frame = make_frame({.udp = true, .payload = 20});
    std::copy(everybody.begin(), everybody.end(), frame.begin());
    set16(frame, 34, flow);
    board.send(from, {frame}, flow % 2);
    std::uint64_t received = 0;
    for (const auto* end : ends) received += end->received;
    ASSERT_EQ(received, flow + 1);
  }
  for (const auto* end : ends) EXPECT_GT(end->received, 0u);
}

TEST(Bridge, CallsAReceiverOnceABurstAndKeepsOrder) {
  Switchboard board;
  const PortId from = board.port({}), to = board.port({}), other = board.port({});
  auto& end = board.endpoint(to);
  auto& bystander = board.endpoint(other);
  board.send(to, {plain_frame(everybody, mac(9))});
  bystander.clear();
  std::vector<Bytes> burst;
  for (std::uint8_t i = 0; i < 32; ++i) {
    burst.push_back(plain_frame(i % 3 == 0 ? everybody : mac(9), mac(1), i));
  }
  board.send(from, burst);
  EXPECT_EQ(end.calls, 1u);
  ASSERT_EQ(end.received, 32u);
  for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(end.frame(i), burst[i]);
  EXPECT_EQ(bystander.received, 11u);
  std::vector<Bytes> twice = burst;
  twice.insert(twice.end(), burst.begin(), burst.end());
  end.clear();
  board.send(from, twice);
  EXPECT_EQ(end.calls, 2u);
  EXPECT_EQ(end.received, 64u);
}

struct VlanCase {
  unsigned port, tag;       // who sends; 0: untagged
  std::array<int, 6> form;  // what each port gets: -1 nothing, 0 untagged, else the tag
};

// Ports: 0 access 10, 1 access 20, 2 trunk 10 and 20, 3 untagged world, 4 trunk 20 native 10,
// 5 untagged world.
TEST(Bridge, VlanMatrix) {
  constexpr VlanCase cases[] = {
      {0, 0, {-1, -1, 10, -1, 0, -1}},   {0, 10, {-1, -1, -1, -1, -1, -1}},
      {0, 20, {-1, -1, -1, -1, -1, -1}}, {1, 0, {-1, -1, 20, -1, 20, -1}},
      {2, 10, {0, -1, -1, -1, 0, -1}},   {2, 20, {-1, 0, -1, -1, 20, -1}},
      {2, 0, {-1, -1, -1, -1, -1, -1}},  {2, 30, {-1, -1, -1, -1, -1, -1}},
      {3, 0, {-1, -1, -1, -1, -1, 0}},   {3, 10, {-1, -1, -1, -1, -1, -1}},
      {4, 0, {0, -1, 10, -1, -1, -1}},   {4, 20, {-1, 0, 20, -1, -1, -1}},
      {4, 10, {-1, -1, -1, -1, -1, -1}},
  };
  for (const unsigned reactors : {1u, 2u}) {
    Switchboard board{reactors};
    const std::vector<PortConfig> configs{access(10), access(20),      trunk({10, 20}),
                                          access(0),  trunk({20}, 10), access(0)};
    std::vector<PortId> ports;
    std::vector<FakePort*> ends;
    for (unsigned i = 0; i < 6; ++i) {
      ports.push_back(board.port(configs[i]));
      ends.push_back(&board.endpoint(ports[i], i % reactors));
    }
    for (const auto& c : cases) {
      for (const std::size_t size : {60u, 128u, 132u, 1500u}) {
        const Bytes plain = plain_frame(everybody, mac(c.port + 1), 0x5a, size);
        for (auto* end : ends) end->clear();
        board.send(ports[c.port], {c.tag == 0 ? plain : tagged(plain, c.tag)}, c.port % reactors);
        for (unsigned i = 0; i < 6; ++i) {
          SCOPED_TRACE(::testing::Message()
                       << "from " << c.port << " tag " << c.tag << " to " << i);
          ASSERT_EQ(ends[i]->received, c.form[i] < 0 ? 0u : 1u);
          if (c.form[i] < 0) continue;
          const auto tag = static_cast<unsigned>(c.form[i]);
          EXPECT_EQ(ends[i]->frame(0), tag == 0 ? plain : tagged(plain, tag));
        }
      }
    }
    EXPECT_GT(board.counters(ports[0]).drop_vlan.get(), 0u);
  }
}

TEST(Bridge, KeepsThePriorityOfATag) {
  Switchboard board{2};
  const PortId from = board.port(trunk({10})), to = board.port(trunk({10})),
               access_port = board.port(access(10));
  auto& end = board.endpoint(to, 1);
  auto& plain_end = board.endpoint(access_port, 0);
  const Bytes plain = plain_frame(everybody, mac(1));
  board.send(from, {tagged(plain, 0xb00a)});
  EXPECT_EQ(end.frame(0), tagged(plain, 0xb00a));
  EXPECT_EQ(plain_end.frame(0), plain);
  board.send(access_port, {tagged(plain_frame(everybody, mac(2)), 0x6000)});  // priority alone
  EXPECT_EQ(end.frame(1), tagged(plain_frame(everybody, mac(2)), 0x600a));
}

TEST(Bridge, MovesTheOffloadRequestWithTheTag) {
  Switchboard board;
  const PortId from = board.port(access(10)), to = board.port(trunk({10})),
               back = board.port(access(10));
  auto& end = board.endpoint(to);
  auto& back_end = board.endpoint(back);
  const Shape shape{.payload = 4000};
  board.send(from, {make_frame(shape)}, 0, [&](Packet& p) { request(p, shape, Gso::tcp4, 1000); });
  ASSERT_EQ(end.received, 1u);
  const Packet& got = end.frames[0];
  EXPECT_EQ(got.offload.checksum_start, shape.l2() + 4 + shape.l3());
  EXPECT_EQ(got.offload.header_length, shape.headers() + 4);
  EXPECT_EQ(back_end.frames[0].offload.checksum_start, shape.l2() + shape.l3());
  EXPECT_EQ(end.frame(0).size(), shape.headers() + 4 + 4000);
  const Shape with_tag{.tags = 1, .payload = 4000};
  board.send(to, {make_frame(with_tag)}, 0,
             [&](Packet& p) { request(p, with_tag, Gso::tcp4, 1000); });
  EXPECT_EQ(back_end.frames[1].offload.checksum_start, shape.l2() + shape.l3());
  EXPECT_EQ(back_end.frames[1].offload.header_length, shape.headers());
}

TEST(Bridge, CountsAPacketThatHasNoRoomForItsTag) {
  Switchboard board;
  const PortId from = board.port(access(10)), to = board.port(trunk({10}));
  auto& end = board.endpoint(to);
  const Bytes frame = plain_frame(everybody, mac(1), 0, Packet::header_max + Packet::views_max);
  board.send(from, {frame}, 0, [&](Packet& p) { describe(frame, p, 1); });
  EXPECT_EQ(end.received, 0u);
  EXPECT_EQ(board.counters(to).drop_too_long.get(), 1u);
}

TEST(Bridge, IsolatedPortsReachOnlyOthers) {
  Switchboard board{2};
  PortConfig isolated;
  isolated.isolated = true;
  const PortId a = board.port(isolated), b = board.port(isolated), open = board.port({});
  auto& end_b = board.endpoint(b, 1);
  auto& end_open = board.endpoint(open, 1);
  board.endpoint(a);
  board.send(b, {plain_frame(everybody, mac(2))}, 1);
  board.send(a, {plain_frame(everybody, mac(1)), plain_frame(mac(2), mac(1))});
  EXPECT_EQ(end_b.received, 0u);
  EXPECT_EQ(end_open.received, 2u);
  EXPECT_EQ(board.counters(a).drop_isolated.get(), 1u);
  board.send(open, {plain_frame(mac(2), mac(3)), plain_frame(everybody, mac(3))});
  EXPECT_EQ(end_b.received, 2u);
}

PortConfig vepa_uplink() {
  PortConfig config;
  config.uplink = config.vepa = true;
  return config;
}

// Guests a and b on any reactors, the way out on the last one.
TEST(Bridge, VepaSendsGuestsFramesOutAndTakesThemBack) {
  for (const unsigned reactors : {1u, 2u}) {
    Switchboard board{reactors};
    const PortId a = board.port({}), b = board.port({}), c = board.port({}),
                 wire = board.port(vepa_uplink());
    auto &end_a = board.endpoint(a), &end_b = board.endpoint(b, reactors - 1),
         &end_c = board.endpoint(c), &end_wire = board.endpoint(wire, reactors - 1);
    const auto back = [&](const Bytes& frame) { board.send(wire, {frame}, reactors - 1); };
    const auto expect = [&](unsigned at_a, unsigned at_b, unsigned at_c, unsigned at_wire) {
      EXPECT_EQ(end_a.received, at_a);
      EXPECT_EQ(end_b.received, at_b);
      EXPECT_EQ(end_c.received, at_c);
      EXPECT_EQ(end_wire.received, at_wire);
    };
    // To everybody: out alone, and back to all but its sender, whose place stays.
    const Bytes hello = plain_frame(everybody, mac(1));
    board.send(a, {hello});
    expect(0, 0, 0, 1);
    EXPECT_EQ(end_wire.frame(0), hello);
    back(hello);
    expect(0, 1, 1, 1);
    for (const auto& each : board.addresses()) EXPECT_EQ(each.port, a);
    // To a station that is known here.
    const Bytes answer = plain_frame(mac(1), mac(2));
    board.send(b, {answer, answer}, reactors - 1);
    expect(0, 1, 1, 3);
    back(answer);
    expect(1, 1, 1, 3);
    EXPECT_EQ(end_a.frame(0), answer);
    // To nobody's, which comes back, too.
    board.send(a, {plain_frame(mac(9), mac(1))});
    expect(1, 1, 1, 4);
    back(plain_frame(mac(9), mac(1)));
    expect(1, 2, 2, 4);
    // From outside.
    back(plain_frame(mac(2), mac(8)));
    expect(1, 3, 2, 4);
    back(plain_frame(everybody, mac(8)));
    expect(2, 4, 3, 4);
    // What comes back to where it came from.
    back(plain_frame(mac(1), mac(1)));
    expect(2, 4, 3, 4);
    EXPECT_EQ(board.counters(wire, reactors - 1).drop_hairpin.get(), 1u);
  }
}

TEST(Bridge, VepaKeepsStaticAddressesIsolationAndVlans) {
  Switchboard board;
  PortConfig alone;
  alone.isolated = true;
  alone.static_macs = {mac(1)};
  const PortId a = board.port(alone);
  alone.static_macs = {mac(2)};
  const PortId b = board.port(alone), wire = board.port(vepa_uplink()),
               other = board.port(access(10)), same = board.port(access(10));
  auto &end_a = board.endpoint(a), &end_b = board.endpoint(b), &end_wire = board.endpoint(wire);
  auto& end_same = board.endpoint(same);
  board.endpoint(other);
  // Both isolated: neither here nor by the way round.
  board.send(a, {plain_frame(mac(2), mac(1))});
  EXPECT_EQ(end_wire.received, 0u);
  EXPECT_EQ(board.counters(a).drop_isolated.get(), 1u);
  board.send(wire, {plain_frame(mac(2), mac(1)), plain_frame(everybody, mac(1))});
  EXPECT_EQ(board.counters(wire).drop_isolated.get(), 1u);
  EXPECT_EQ(board.counters(wire).drop_source.get(), 0u);
  EXPECT_EQ(end_a.received + end_b.received, 0u);
  // A VLAN that the way out is not in leads nowhere.
  board.send(same, {plain_frame(everybody, mac(3))});
  board.send(other, {plain_frame(mac(3), mac(4)), plain_frame(everybody, mac(4))});
  EXPECT_EQ(end_same.received + end_wire.received, 0u);
  EXPECT_EQ(board.counters(other).drop_vlan.get(), 1u);
}

// An uplink that does not carry: guests do not reach each other behind its back; of two, the one
// that does is the way.
TEST(Bridge, VepaGoesByTheUplinkThatCarries) {
  Switchboard board;
  const PortId first = board.port(vepa_uplink()), second = board.port(vepa_uplink()),
               a = board.port({}), b = board.port({});
  auto &end_a = board.endpoint(a), &end_b = board.endpoint(b);
  board.send(b, {plain_frame(everybody, mac(2))});
  board.send(a, {plain_frame(mac(2), mac(1))});
  EXPECT_EQ(end_a.received + end_b.received, 0u);
  auto& end_second = board.endpoint(second);
  board.send(a, {plain_frame(mac(2), mac(1))});
  EXPECT_EQ(end_second.received, 1u);
  board.finish([&](Fabric::Done done) { board.fabric().remove_endpoint(second, 0, done); });
  end_second.gone = true;
  auto& end_first = board.endpoint(first);
  board.send(a, {plain_frame(mac(2), mac(1))});
  EXPECT_EQ(end_first.received, 1u);
}

// A guest must not speak to a bond's partner: LACP is known by its type, whatever the address.
TEST(Bridge, DropsSlowProtocols) {
  Switchboard board;
  const PortId from = board.port({}), to = board.port({});
  auto& end = board.endpoint(to);
  Bytes slow = plain_frame(everybody, mac(1));
  set16(slow, 12, 0x8809);
  board.send(from, {slow, tagged(slow, 0)});  // with a priority alone it would go out without a tag
  EXPECT_EQ(board.counters(from).drop_reserved.get(), 2u);
  EXPECT_EQ(end.received, 0u);
}

TEST(Bridge, DropsByReason) {
  Switchboard board;
  PortConfig owner;
  owner.static_macs = {mac(7)};
  const PortId from = board.port({}), owned = board.port(owner);
  auto& end = board.endpoint(owned);
  auto& c = board.counters(from);
  const Bytes group_source = plain_frame(everybody, {3, 0, 0, 0, 0, 1});
  const Bytes reserved = plain_frame({1, 0x80, 0xc2, 0, 0, 1}, mac(1));
  board.send(from, {Bytes(13, 1), group_source, plain_frame(everybody, {}), reserved,
                    plain_frame(everybody, mac(7)), tagged(plain_frame(everybody, mac(1)), 5),
                    tagged(plain_frame(everybody, mac(1)), 5, 0x88a8)});
  Bytes cut = tagged(plain_frame(everybody, mac(1)), 5);
  cut.resize(17);
  board.send(from, {cut, plain_frame(everybody, mac(1))}, 0, [](Packet& p) {
    if (p.length == 60) p.offload.checksum_needed = true, p.offload.checksum_start = 60;
  });
  EXPECT_EQ(c.drop_malformed.get(), 3u);
  EXPECT_EQ(c.drop_source.get(), 3u);
  EXPECT_EQ(c.drop_reserved.get(), 1u);
  EXPECT_EQ(c.drop_vlan.get(), 2u);
  EXPECT_EQ(c.tx_packets.get(), 9u);
  EXPECT_EQ(end.received, 0u);
  board.send(from, {plain_frame(mac(2), mac(2)), plain_frame(mac(7), mac(2))});
  EXPECT_EQ(c.drop_hairpin.get(), 1u);
  EXPECT_EQ(end.received, 1u);
  board.finish([&](auto done) { board.fabric().remove_endpoint(owned, 0, std::move(done)); });
  board.send(from, {plain_frame(mac(7), mac(2))});
  EXPECT_EQ(board.counters(owned).drop_no_queue.get(), 1u);
}

TEST(Bridge, AddressFloodStaysInsideItsQuota) {
  Switchboard board;
  PortConfig small;
  small.addresses_max = 16;
  const PortId flooder = board.port(small), victim = board.port({});
  auto& end = board.endpoint(victim);
  board.endpoint(flooder);
  board.send(victim, {plain_frame(everybody, mac(1))});
  for (unsigned i = 0; i < 50; ++i) {
    std::vector<Bytes> burst;
    for (unsigned j = 0; j < 32; ++j) burst.push_back(plain_frame(mac(1), mac(1000 + i * 32 + j)));
    board.send(flooder, burst);
  }
  EXPECT_EQ(end.received, 1600u);
  EXPECT_EQ(board.counters(flooder).learn_refused.get(), 1600u - 16u);
  EXPECT_EQ(board.addresses().size(), 17u);
}

TEST(Bridge, IgnoresAPortThatIsGone) {
  Switchboard board;
  const PortId from = board.port({});
  board.finish([&](auto done) { board.fabric().remove_port(from, std::move(done)); });
  board.send(from, {plain_frame(everybody, mac(1))});
  board.send(no_port, {plain_frame(everybody, mac(1))});
}

PortConfig alone(PortConfig config = {}) {
  config.alone = true;
  return config;
}

TEST(Bridge, APairTalksPastAllAddressesAndToNobodyElse) {
  Switchboard board;
  const PortId guest = board.port(alone()), wire = board.port(alone()), other = board.port({});
  auto& at_guest = board.endpoint(guest);
  auto& at_wire = board.endpoint(wire);
  auto& at_other = board.endpoint(other);
  const Bytes to_all = plain_frame(everybody, mac(1)), to_other = plain_frame(mac(3), mac(1));
  board.send(guest, {to_all});
  EXPECT_EQ(board.counters(guest).drop_isolated.get(), 1u);
  board.finish([&](auto done) { board.fabric().pair(guest, wire, done); });
  board.send(other, {plain_frame(everybody, mac(3)), plain_frame(mac(1), mac(3))});
  EXPECT_EQ(at_guest.received + at_wire.received, 0u);
  board.send(guest, {to_all, to_other});
  ASSERT_EQ(at_wire.received, 2u);
  EXPECT_EQ(at_wire.frame(1), to_other);
  board.send(wire, {to_other});
  EXPECT_EQ(at_guest.received, 1u);
  EXPECT_EQ(at_other.received, 0u);
  for (const auto& address : board.addresses()) EXPECT_EQ(address.port, other);
}

TEST(Bridge, APairKeepsItsVlansAndEndsWithAPort) {
  Switchboard board;
  const PortId guest = board.port(alone(access(10))), wire = board.port(alone(trunk({10})));
  const PortId plain = board.port(alone());
  auto& at_wire = board.endpoint(wire);
  board.finish([&](auto done) { board.fabric().pair(guest, wire, done); });
  board.send(guest, {plain_frame(mac(2), mac(1))});
  ASSERT_EQ(at_wire.received, 1u);
  EXPECT_EQ(get16(at_wire.frame(0), 12), 0x8100u);
  board.send(wire, {plain_frame(mac(1), mac(2))});
  EXPECT_EQ(board.counters(wire).drop_vlan.get(), 1u);
  board.finish([&](auto done) { board.fabric().remove_port(guest, done); });
  board.finish([&](auto done) { board.fabric().pair(plain, wire, done); });
  board.send(plain, {plain_frame(mac(2), mac(1))});
  EXPECT_EQ(at_wire.received, 1u);
  EXPECT_EQ(board.counters(plain).drop_vlan.get(), 1u);
}

}  // namespace
}  // namespace millrace::vswitch

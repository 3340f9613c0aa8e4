#include "switch/mirror.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "switch/gso.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

// Ports a, b and c know each other's addresses, 1 to 3; d watches.
class Mirror : public ::testing::TestWithParam<unsigned> {
 protected:
  Mirror() {
    for (unsigned i = 0; i < 4; ++i) {
      ports.at(i) = board.port({});
      ends.at(i) = &board.endpoint(ports.at(i), i % GetParam());
    }
    for (unsigned i = 0; i < 3; ++i) send(i, plain_frame(everybody, mac(i + 1)));
    clear();
  }
  void add(const std::vector<unsigned>& from, MirrorDirection direction, unsigned to = 3) {
    board.finish([&](auto done) {
      const auto added = try_add(from, direction, to, done);
      ASSERT_TRUE(added.has_value()) << added.error().message;
    });
  }
  base::Result<> try_add(const std::vector<unsigned>& from, MirrorDirection direction, unsigned to,
                         Fabric::Done done) {
    MirrorConfig config;
    for (const auto each : from) config.from.push_back(ports.at(each));
    config.to = ports.at(to);
    config.direction = direction;
    return board.fabric().add_mirror(config, std::move(done));
  }
  std::string refusal(const std::vector<unsigned>& from, unsigned to) {
    const auto added = try_add(from, MirrorDirection::both, to, {});
    return added ? "" : added.error().message;
  }
  void remove(unsigned to = 3) {
    board.finish([&](auto done) { board.fabric().remove_mirror(ports.at(to), done); });
  }
  void send(unsigned from, const Bytes& frame) {
    board.send(ports.at(from), {frame}, from % GetParam());
  }
  void clear() {
    for (auto* end : ends) end->clear();
  }
  // How many frames each port has got since the last time.
  std::array<std::uint64_t, 4> got() {
    std::array<std::uint64_t, 4> out{};
    for (unsigned i = 0; i < 4; ++i) out.at(i) = ends.at(i)->received;
    clear();
    return out;
  }
  MirrorFigures figures(unsigned to = 3) { return board.fabric().mirror_figures(ports.at(to)); }

  using Got = std::array<std::uint64_t, 4>;
  Switchboard board{GetParam()};
  std::array<PortId, 4> ports{};
  std::array<FakePort*, 4> ends{};
  const Bytes ab = plain_frame(mac(2), mac(1), 7, 300), ba = plain_frame(mac(1), mac(2), 8, 90),
              bc = plain_frame(mac(3), mac(2), 9), to_all = plain_frame(everybody, mac(1), 5);
};

INSTANTIATE_TEST_SUITE_P(Reactors, Mirror, ::testing::Values(1u, 2u, 4u));

TEST_P(Mirror, CopiesWhatAPortSends) {
  add({0}, MirrorDirection::in);
  send(0, ab);
  EXPECT_EQ(ends[3]->frame(0), ab);
  EXPECT_EQ(ends[1]->frame(0), ab);
  EXPECT_EQ(got(), (Got{0, 1, 0, 1}));
  send(1, ba);
  EXPECT_EQ(got(), (Got{1, 0, 0, 0}));
  send(0, to_all);
  EXPECT_EQ(got(), (Got{0, 1, 1, 1}));
  EXPECT_EQ(figures().frames, 2u);
  EXPECT_EQ(figures().bytes, 360u);
  EXPECT_EQ(figures().dropped, 0u);
}

TEST_P(Mirror, CopiesWhatAPortGets) {
  add({0}, MirrorDirection::out);
  send(0, ab);
  EXPECT_EQ(got(), (Got{0, 1, 0, 0}));
  send(1, ba);
  EXPECT_EQ(ends[3]->frame(0), ba);
  EXPECT_EQ(got(), (Got{1, 0, 0, 1}));
  send(1, bc);
  EXPECT_EQ(got(), (Got{0, 0, 1, 0}));
  send(1, plain_frame(everybody, mac(2)));
  EXPECT_EQ(got(), (Got{1, 0, 1, 1}));
  send(1, plain_frame(mac(77), mac(2)));  // nobody knows where that is
  EXPECT_EQ(got(), (Got{1, 0, 1, 1}));
}

// Both ends, on reactors of their own, and several receivers: one copy.
TEST_P(Mirror, CopiesAFrameOnce) {
  add({0, 1, 2}, MirrorDirection::both);
  send(0, ab);
  EXPECT_EQ(got(), (Got{0, 1, 0, 1}));
  send(1, ba);
  EXPECT_EQ(got(), (Got{1, 0, 0, 1}));
  send(0, to_all);
  EXPECT_EQ(got(), (Got{0, 1, 1, 1}));
  board.send(ports[0], std::vector<Bytes>(64, ab));  // the way that was looked up once for all
  EXPECT_EQ(got(), (Got{0, 64, 0, 64}));
  remove();
  add({1, 2}, MirrorDirection::out);
  send(0, to_all);
  EXPECT_EQ(got(), (Got{0, 1, 1, 1}));
  EXPECT_EQ(figures().frames, 1u);
}

TEST_P(Mirror, KeepsTheOrderOfAFlow) {
  add({0}, MirrorDirection::both);
  std::vector<Bytes> sent;
  for (std::uint8_t i = 0; i < 32; ++i) {
    sent.push_back(i % 5 == 0 ? plain_frame(everybody, mac(1), i) : plain_frame(mac(2), mac(1), i));
  }
  board.send(ports[0], sent);
  ASSERT_EQ(ends[3]->received, 32u);
  for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(ends[3]->frame(i), sent[i]);
}

TEST_P(Mirror, TheDestinationIsForCopiesAlone) {
  send(3, plain_frame(everybody, mac(4)));
  clear();
  send(0, plain_frame(mac(4), mac(1)));
  EXPECT_EQ(got(), (Got{0, 0, 0, 1}));
  add({1}, MirrorDirection::both);
  for (const auto& address : board.addresses()) EXPECT_NE(address.port, ports[3]);
  send(0, plain_frame(mac(4), mac(1)));  // it is nowhere now, and looked for at b, too
  EXPECT_EQ(ends[3]->received, 1u);
  EXPECT_EQ(got(), (Got{0, 1, 1, 1}));
  send(0, plain_frame(mac(3), mac(1)));
  EXPECT_EQ(got(), (Got{0, 0, 1, 0}));
  send(3, plain_frame(mac(1), mac(4)));
  send(3, plain_frame(everybody, mac(4)));
  EXPECT_EQ(got(), (Got{0, 0, 0, 0}));
  EXPECT_EQ(board.counters(ports[3], 3 % GetParam()).drop_isolated.get(), 2u);
  for (const auto& address : board.addresses()) EXPECT_NE(address.port, ports[3]);
  remove();
  send(3, plain_frame(mac(1), mac(4)));
  EXPECT_EQ(got(), (Got{1, 0, 0, 0}));
  send(0, to_all);
  EXPECT_EQ(got(), (Got{0, 1, 1, 1}));
}

// As it came in, also where it then goes nowhere; what the switch does not take is not copied.
TEST_P(Mirror, CopiesWhatHasNoReceiver) {
  add({0}, MirrorDirection::in);
  send(0, plain_frame(mac(1), mac(1)));
  EXPECT_EQ(got(), (Got{0, 0, 0, 1}));
  Bytes pause = plain_frame({0x01, 0x80, 0xc2, 0, 0, 1}, mac(1));
  send(0, pause);
  send(0, tagged(ab, 10));
  EXPECT_EQ(got(), (Got{0, 0, 0, 0}));
}

TEST_P(Mirror, ADestinationWithoutAQueueCosts) {
  add({0}, MirrorDirection::both);
  board.finish([&](auto done) { board.fabric().remove_endpoint(ports[3], 0, done); });
  send(0, ab);
  EXPECT_EQ(ends[1]->received, 1u);
  EXPECT_EQ(figures().frames, 1u);
  EXPECT_EQ(figures().dropped, 1u);
}

TEST_P(Mirror, RefusesLoopsAndSharedDestinations) {
  EXPECT_EQ(refusal({0, 3}, 3), "p4 is its own destination; give another");
  add({0}, MirrorDirection::in);
  EXPECT_EQ(refusal({1}, 3), "p4 is another mirror's destination; name all ports in one mirror");
  EXPECT_EQ(refusal({1}, 0),
            "p1 is mirrored itself, and copies are not copied; give another destination");
  EXPECT_EQ(refusal({1, 3}, 2),
            "p4 is a mirror's destination, and copies are not copied; leave it out");
  PortConfig alone, vepa;
  alone.alone = true;
  vepa.vepa = vepa.uplink = true;
  ports[1] = board.port(alone), ports[2] = board.port(vepa);
  EXPECT_EQ(refusal({0}, 1), "p5 is direct, bound to one other port; give another destination");
  EXPECT_EQ(refusal({0}, 2),
            "p6 has vepa, guests reach each other by it; give another destination");
}

TEST_P(Mirror, SeveralMirrorsOfAPort) {
  add({0}, MirrorDirection::in, 2);
  add({0}, MirrorDirection::both, 3);
  send(0, ab);
  EXPECT_EQ(got(), (Got{0, 1, 1, 1}));
  send(1, ba);
  EXPECT_EQ(got(), (Got{1, 0, 0, 1}));
  remove(2);
  send(0, ab);
  EXPECT_EQ(got(), (Got{0, 1, 0, 1}));
}

TEST_P(Mirror, APortThatIsRemovedLeavesItsMirrors) {
  add({0, 1}, MirrorDirection::in);
  const auto drop = [&](unsigned i) {
    board.finish([&](auto done) { board.fabric().remove_endpoint(ports.at(i), 0, done); });
    board.finish([&](auto done) { board.fabric().remove_port(ports.at(i), done); });
  };
  drop(0);
  send(1, bc);
  EXPECT_EQ(got(), (Got{0, 0, 1, 1}));
  drop(3);
  send(1, bc);
  EXPECT_EQ(got(), (Got{0, 0, 1, 0}));
  EXPECT_EQ(figures().frames, 0u);
}

// Trunk, access and untagged members; the watcher has the tag, its port no VLAN.
TEST(MirrorVlans, CopiesHaveTheTagOfTheirVlan) {
  for (const unsigned reactors : {1u, 2u}) {
    Switchboard board{reactors};
    PortConfig access, trunk;
    access.access_vlan = 10;
    trunk.trunk = {10, 20};
    const PortId a = board.port(access), t = board.port(trunk), watcher = board.port({});
    board.endpoint(a);
    auto& end_t = board.endpoint(t);
    auto& end = board.endpoint(watcher, reactors - 1);
    board.finish([&](auto done) {
      ASSERT_TRUE(board.fabric().add_mirror({{a, t}, watcher, MirrorDirection::both}, done));
    });
    for (const std::size_t size : {60u, 128u, 1500u}) {
      const Bytes plain = plain_frame(everybody, mac(1), 3, size);
      end.clear(), end_t.clear();
      board.send(a, {plain});
      board.send(t, {tagged(plain_frame(everybody, mac(2), 3, size), 0xb014)});
      ASSERT_EQ(end.received, 2u);
      EXPECT_EQ(end.frame(0), tagged(plain, 10));
      EXPECT_EQ(end.frame(1), tagged(plain_frame(everybody, mac(2), 3, size), 0xb014));
      EXPECT_EQ(end_t.frame(0), tagged(plain, 10));
    }
  }
}

// Two ports that are each other's alone.
TEST(MirrorPairs, CopiesWhatAPairSays) {
  for (const unsigned reactors : {1u, 2u}) {
    Switchboard board{reactors};
    PortConfig alone;
    alone.alone = true;
    const PortId guest = board.port(alone), wire = board.port(alone), watcher = board.port({});
    auto& end_guest = board.endpoint(guest);
    auto& end_wire = board.endpoint(wire);
    auto& end = board.endpoint(watcher, reactors - 1);
    board.finish([&](auto done) { board.fabric().pair(guest, wire, done); });
    board.finish([&](auto done) {
      ASSERT_TRUE(board.fabric().add_mirror({{guest}, watcher, MirrorDirection::both}, done));
    });
    board.send(guest, {plain_frame(mac(2), mac(1))});
    board.send(wire, {plain_frame(mac(1), mac(2))});
    EXPECT_EQ(end.received, 2u);
    EXPECT_EQ(end_guest.received, 1u);
    EXPECT_EQ(end_wire.received, 1u);
  }
}

// What a device has written already is copied to who watches, and to nobody else.
TEST(MirrorPairs, CopiesWhatWasReceivedPastTheSwitch) {
  Switchboard board{2};
  PortConfig alone;
  alone.alone = true;
  const PortId guest = board.port(alone), wire = board.port(alone), watcher = board.port({});
  auto& end_guest = board.endpoint(guest);
  auto& end = board.endpoint(watcher, 1);
  board.finish([&](auto done) { board.fabric().pair(guest, wire, done); });
  const auto wanted = [&] {
    bool is = false;
    board.on(0, [&] { is = board.fabric().bridge(0).mirrors_direct(wire); });
    return is;
  };
  EXPECT_FALSE(wanted());
  board.finish([&](auto done) {
    ASSERT_TRUE(board.fabric().add_mirror({{guest}, watcher, MirrorDirection::out}, done));
  });
  EXPECT_TRUE(wanted());
  const Bytes bytes = tagged(plain_frame(mac(1), mac(2), 4, 400), 10);
  std::vector<Packet> packets(2);
  describe(bytes, packets[0]);
  describe(bytes, packets[1]);
  packets[1].header_size = 9;
  board.on(0, [&] { board.fabric().bridge(0).mirror_direct(wire, packets); });
  board.settle();
  ASSERT_EQ(end.received, 1u);
  EXPECT_EQ(end.frame(0), bytes);
  EXPECT_EQ(end_guest.received, 0u);
  board.finish([&](auto done) { board.fabric().remove_mirror(watcher, done); });
  EXPECT_FALSE(wanted());
}

// The watcher's reactor stands still: what else goes there is not lost for it.
TEST(MirrorFull, AStalledWatcherTakesNoRoomFromOthers) {
  Switchboard board{2};
  const PortId from = board.port({}), to = board.port({}), watcher = board.port({});
  auto& end = board.endpoint(watcher, 1);
  auto& receiver = board.endpoint(to, 1);
  end.keep = false, receiver.keep = false;
  board.finish([&](auto done) {
    ASSERT_TRUE(board.fabric().add_mirror({{from}, watcher, MirrorDirection::in}, done));
  });
  board.send(to, {plain_frame(everybody, mac(2))}, 1);
  std::atomic<bool> go{false}, back{false};
  board.pool().post(
      1,
      [&go](base::Reactor&) {
        while (!go.load()) std::this_thread::yield();
      },
      [&back] { back = true; });
  constexpr unsigned frames = 700;
  const Bytes frame = plain_frame(mac(2), mac(1), 1, 1400);
  std::vector<Packet> packets(1);
  for (unsigned i = 0; i < frames; ++i) {
    describe(frame, packets[0]);
    board.on(0, [&] { board.fabric().bridge(0).forward(from, packets); });
  }
  go = true;
  board.wait([&] { return back.load(); });
  board.settle();
  const auto figures = board.fabric().mirror_figures(watcher);
  EXPECT_EQ(receiver.received, frames);
  EXPECT_EQ(board.counters(to).drop_link_full.get(), 0u);
  EXPECT_EQ(figures.frames, frames);
  EXPECT_GT(figures.dropped, 0u);
  EXPECT_EQ(end.received + figures.dropped, frames);
}

// A mirror comes and goes while frames pass: those lose none, nor does it change their order.
TEST(MirrorTraffic, ComesAndGoesUnderTraffic) {
  Switchboard board{2};
  const PortId from = board.port({}), to = board.port({}), watcher = board.port({});
  board.endpoint(from);
  auto& receiver = board.endpoint(to, 1);
  auto& end = board.endpoint(watcher, 1);
  end.keep = false;
  board.send(to, {plain_frame(everybody, mac(2))}, 1);
  board.send(from, {plain_frame(everybody, mac(1))});
  std::uint64_t sent = 0, copied = 0;
  const std::uint64_t before = end.received;
  std::vector<Packet> packets(8);
  const auto burst = [&](std::uint8_t mark) {
    receiver.clear();
    std::vector<Bytes> frames;
    for (std::uint8_t i = 0; i < 8; ++i) {
      frames.push_back(plain_frame(mac(2), mac(1), static_cast<std::uint8_t>(mark * 8 + i)));
    }
    board.send(from, frames);
    sent += frames.size();
    ASSERT_EQ(receiver.received, 8u);
    for (std::size_t i = 0; i < 8; ++i) ASSERT_EQ(receiver.frame(i), frames[i]);
  };
  for (std::uint8_t round = 0; round < 30; ++round) {
    unsigned answers = 0;
    ASSERT_TRUE(board.fabric().add_mirror({{from, to}, watcher, MirrorDirection::both},
                                          [&answers] { ++answers; }));
    burst(round);
    board.wait([&] { return answers == 1; });
    burst(static_cast<std::uint8_t>(round + 1));
    copied += board.fabric().mirror_figures(watcher).frames;
    board.fabric().remove_mirror(watcher, [&answers] { ++answers; });
    burst(static_cast<std::uint8_t>(round + 2));
    board.wait([&] { return answers == 2; });
  }
  EXPECT_EQ(sent, 30u * 24);
  EXPECT_GE(copied, 30u * 8);
  EXPECT_LE(end.received - before, copied + 30u * 8);
}

// Copies wait at the new owner of the watcher's queue as other frames do.
TEST(MirrorMoves, TheDestinationsQueueMoves) {
  Switchboard board{2};
  const PortId from = board.port({}), watcher = board.port({});
  board.endpoint(from);
  auto& end = board.endpoint(watcher, 0);
  board.finish([&](auto done) {
    ASSERT_TRUE(board.fabric().add_mirror({{from}, watcher, MirrorDirection::in}, done));
  });
  board.send(from, {plain_frame(mac(9), mac(1), 1)});
  std::shared_ptr<base::Handover> move;
  board.fabric().move_endpoint(watcher, 0, 1, [&](auto handed) { move = std::move(handed); });
  board.wait([&] { return move != nullptr; });
  board.send(from, {plain_frame(mac(9), mac(1), 2)});
  EXPECT_EQ(end.received, 1u);
  const auto until = [&](bool (base::Handover::*may)() noexcept) {
    board.wait([&] {
      bool does = false;
      board.on(0, [&] { does = (*move.*may)(); });
      return does;
    });
  };
  until(&base::Handover::may_pause);
  until(&base::Handover::may_leave);
  board.on(1, [&] { move->arrived(); });
  EXPECT_EQ(end.received, 2u);
  board.finish([&](auto done) { board.fabric().end_move(watcher, 0, done); });
  board.send(from, {plain_frame(mac(9), mac(1), 3)});
  ASSERT_EQ(end.received, 3u);
  for (std::uint8_t i = 0; i < 3; ++i) {
    EXPECT_EQ(end.frame(i), plain_frame(mac(9), mac(1), static_cast<std::uint8_t>(i + 1)));
  }
  EXPECT_EQ(board.fabric().mirror_figures(watcher).dropped, 0u);
}

// A large packet is what the receiver makes of it, as in a flood.
TEST(MirrorOffloads, CopiesCarryTheirOffloadRequest) {
  for (const unsigned reactors : {1u, 2u}) {
    Switchboard board{reactors};
    const PortId from = board.port({}), to = board.port({}), watcher = board.port({});
    auto& receiver = board.endpoint(to);
    auto& end = board.endpoint(watcher, reactors - 1);
    board.finish([&](auto done) {
      ASSERT_TRUE(board.fabric().add_mirror({{from}, watcher, MirrorDirection::in}, done));
    });
    const Shape shape{.payload = 20'000};
    board.send(from, {make_frame(shape)}, 0, [&shape](Packet& packet) {
      packet.offload.checksum_needed = true;
      packet.offload.gso = Gso::tcp4;
      packet.offload.checksum_start = static_cast<std::uint16_t>(shape.l2() + shape.l3());
      packet.offload.checksum_offset = 16;
      packet.offload.gso_size = 1448;
    });
    ASSERT_EQ(end.received, 1u);
    ASSERT_EQ(receiver.received, 1u);
    EXPECT_EQ(end.frames[0].offload.gso, Gso::tcp4);
    EXPECT_EQ(end.frames[0].offload.gso_size, 1448);
    EXPECT_EQ(end.frame(0), receiver.frame(0));
  }
}

}  // namespace
}  // namespace millrace::vswitch

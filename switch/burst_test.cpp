// Bursts whose packets are of the same two stations: what one packet's way says of the next.
#include <gtest/gtest.h>

#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

TEST(Burst, AStationThatMovesInTheMiddleTakesItsFramesAlong) {
  Switchboard board;
  const PortId from = board.port({}), to = board.port({}), third = board.port({});
  auto& end = board.endpoint(to);
  auto& other = board.endpoint(third);
  board.endpoint(from);
  board.send(to, {plain_frame(everybody, mac(2))});
  other.clear();
  const Bytes there = plain_frame(mac(2), mac(1));
  // Station 2 speaks at the port of station 1: what is for it stays there from then on.
  board.send(from, {there, there, plain_frame(everybody, mac(2)), there, there});
  EXPECT_EQ(end.received, 3u);
  EXPECT_EQ(other.received, 1u);
  EXPECT_EQ(board.counters(from).drop_hairpin.get(), 2u);
}

TEST(Burst, VlansOfTheSameStationsAreApart) {
  Switchboard board;
  PortConfig trunk, ten, twenty;
  trunk.trunk = {10, 20};
  ten.access_vlan = 10, twenty.access_vlan = 20;
  const PortId from = board.port(trunk), in_ten = board.port(ten), in_twenty = board.port(twenty);
  auto& end_ten = board.endpoint(in_ten);
  auto& end_twenty = board.endpoint(in_twenty);
  board.endpoint(from);
  const Bytes plain = plain_frame(mac(2), mac(1));
  for (unsigned round = 0; round < 2; ++round) {
    board.send(from, {tagged(plain, 10), tagged(plain, 10), tagged(plain, 20), tagged(plain, 10),
                      tagged(plain, 20), tagged(plain, 20), plain, tagged(plain, 10)});
    // Unknown to both VLANs at first; then known to one, and still apart.
    board.send(in_ten, {plain_frame(mac(1), mac(2))});
  }
  EXPECT_EQ(end_ten.received, 8u);
  EXPECT_EQ(end_twenty.received, 6u);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(end_twenty.frame(i), plain);
  EXPECT_EQ(board.counters(from).drop_vlan.get(), 2u);
}

// A receiver that wants a tag, and one that does not, of the same frames.
TEST(Burst, TagsAreAsTheReceiverWantsThem) {
  Switchboard board;
  PortConfig access, trunk;
  access.access_vlan = 10, trunk.trunk = {10};
  const PortId from = board.port(access), to = board.port(trunk);
  auto& end = board.endpoint(to);
  board.endpoint(from);
  std::vector<Bytes> burst;
  for (std::uint8_t i = 0; i < 5; ++i) burst.push_back(plain_frame(mac(2), mac(1), i));
  board.send(from, burst);
  ASSERT_EQ(end.received, 5u);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(end.frame(i), tagged(burst[i], 10));
}

TEST(Burst, EveryFrameOfAnAddressThatIsRefusedIsCounted) {
  Switchboard board;
  PortConfig full;
  full.addresses_max = 1;
  const PortId from = board.port(full), to = board.port({});
  auto& end = board.endpoint(to);
  board.endpoint(from);
  board.send(to, {plain_frame(everybody, mac(2))});
  board.send(from, {plain_frame(mac(2), mac(1))});
  const Bytes refused = plain_frame(mac(2), mac(3));
  board.send(from, {refused, refused, refused});
  EXPECT_EQ(end.received, 4u);
  EXPECT_EQ(board.counters(from).learn_refused.get(), 3u);
}

// Flows of the same stations are spread over a port's queues, each in its own order.
TEST(Burst, FlowsOfTheSameStationsAreSpread) {
  Switchboard board;
  const PortId from = board.port({}), to = board.port({});
  std::array<FakePort*, 4> ends;
  for (unsigned slot = 0; slot < 4; ++slot) ends[slot] = &board.endpoint(to, 0, slot);
  board.endpoint(from);
  std::vector<Bytes> burst;
  for (unsigned flow = 0; flow < 32; ++flow) {
    burst.push_back(make_frame({.udp = true, .payload = 20}));
    set16(burst.back(), 34, 1000 + flow);
  }
  board.send(from, burst);
  std::uint64_t received = 0;
  for (const auto* end : ends) {
    EXPECT_GT(end->received, 0u);
    received += end->received;
  }
  EXPECT_EQ(received, 32u);
}

// A frame to nobody's address, again and again, with one receiver and then with two.
TEST(Burst, WhatNobodyKnowsGoesToAll) {
  Switchboard board;
  const PortId from = board.port({}), to = board.port({});
  auto& end = board.endpoint(to);
  board.endpoint(from);
  const Bytes frame = plain_frame(mac(9), mac(1)), zero = plain_frame({}, mac(1));
  board.send(from, {frame, frame, zero, zero, frame});
  EXPECT_EQ(end.received, 5u);
  auto& second = board.endpoint(board.port({}));
  board.send(from, {frame, frame, zero, zero, frame});
  EXPECT_EQ(end.received, 10u);
  EXPECT_EQ(second.received, 5u);
}

// The other receiver is on another reactor: a single receiver here is not the only one.
TEST(Burst, AReceiverElsewhereGetsItsCopies) {
  Switchboard board{2};
  const PortId from = board.port({}), here = board.port({}), there = board.port({});
  auto& near = board.endpoint(here, 0);
  auto& far = board.endpoint(there, 1);
  board.endpoint(from, 0);
  const Bytes frame = plain_frame(everybody, mac(1));
  board.send(from, {frame, frame, frame});
  EXPECT_EQ(near.received, 3u);
  EXPECT_EQ(far.received, 3u);
}

}  // namespace
}  // namespace millrace::vswitch

// A port whose owner says by which of its endpoints each packet comes.
#include "switch/steering.hpp"

#include <gtest/gtest.h>

#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

constexpr unsigned pairs = 3;

std::shared_ptr<Steering> steering(std::uint16_t mask = 7) {
  Toeplitz::Key key;
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::uint8_t>(7 * i + 1);
  auto out = std::make_shared<Steering>();
  out->hash = std::make_shared<const PacketHash>(hash_kind::udp4, key);
  out->mask = mask;
  for (std::size_t i = 0; i <= mask; ++i) out->slots[i] = static_cast<std::uint16_t>(i % pairs);
  return out;
}

Bytes flow(unsigned number, bool everyone = false) {
  Bytes frame = make_frame({.udp = true, .payload = 20});
  const auto to = everyone ? everybody : mac(9);
  std::copy(to.begin(), to.end(), frame.begin());
  set16(frame, 34, number);
  return frame;
}

struct Rig {
  explicit Rig(unsigned reactors) : board{reactors}, from{board.port({})}, to{board.port({})} {
    board.endpoint(from);
    for (unsigned slot = 0; slot < pairs; ++slot) {
      ends[slot] = &board.endpoint(to, slot % reactors, slot);
    }
    board.send(to, {plain_frame(everybody, mac(9))});
  }
  void steer(std::shared_ptr<const Steering> by) {
    board.finish([&](auto done) { board.fabric().set_steering(to, by, std::move(done)); });
  }
  // Which endpoint got it; `pairs` where none did.
  unsigned send(const Bytes& frame, unsigned reactor = 0) {
    std::array<std::uint64_t, pairs> before;
    for (unsigned slot = 0; slot < pairs; ++slot) before[slot] = ends[slot]->received;
    board.send(from, {frame}, reactor);
    unsigned got = pairs;
    for (unsigned slot = 0; slot < pairs; ++slot) {
      if (ends[slot]->received == before[slot]) continue;
      EXPECT_EQ(ends[slot]->received, before[slot] + 1);
      EXPECT_EQ(got, pairs) << "twice";
      got = slot;
    }
    return got;
  }
  std::uint64_t dropped() {
    std::uint64_t sum = 0;
    for (unsigned i = 0; i < board.pool().size(); ++i) {
      sum += board.counters(to, i).drop_no_queue.get();
    }
    return sum;
  }

  Switchboard board;
  PortId from, to;
  std::array<FakePort*, pairs> ends;
};

class Steered : public ::testing::TestWithParam<unsigned> {};

TEST_P(Steered, EveryPacketGoesWhereTheTableSays) {
  Rig rig{GetParam()};
  const auto table = steering();
  rig.steer(table);
  std::array<unsigned, pairs> spread{};
  for (unsigned number = 1000; number < 1060; ++number) {
    for (const bool everyone : {false, true}) {
      const Bytes frame = flow(number, everyone);
      Packet packet;
      describe(frame, packet);
      const auto expected = table->slots[table->hash->of(packet).value & table->mask];
      ASSERT_EQ(rig.send(frame, number % GetParam()), expected);
      ++spread[expected];
    }
  }
  for (const unsigned count : spread) EXPECT_GT(count, 0u);
  rig.steer(nullptr);
  EXPECT_LT(rig.send(flow(1000)), pairs);
  EXPECT_EQ(rig.dropped(), 0u);
}

TEST_P(Steered, WhatHasNoHashGoesToItsOwnQueue) {
  Rig rig{GetParam()};
  auto table = steering();
  table->unclassified = 2;
  rig.steer(table);
  for (unsigned i = 0; i < 10; ++i) {
    EXPECT_EQ(rig.send(plain_frame(mac(9), mac(1), static_cast<std::uint8_t>(i))), 2u);
    EXPECT_EQ(rig.send(plain_frame(everybody, mac(1), static_cast<std::uint8_t>(i))), 2u);
  }
}

TEST_P(Steered, AQueueThatIsNotThereDropsAndIsCountedOnce) {
  Rig rig{GetParam()};
  auto table = steering(0);
  table->slots[0] = 1, table->unclassified = 77;
  rig.steer(table);
  EXPECT_EQ(rig.send(flow(1000)), 1u);
  rig.board.finish(
      [&](auto done) { rig.board.fabric().remove_endpoint(rig.to, 1, std::move(done)); });
  rig.ends[1]->gone = true;
  EXPECT_EQ(rig.send(flow(1000)), pairs);
  EXPECT_EQ(rig.dropped(), 1u);
  EXPECT_EQ(rig.send(flow(1000, true)), pairs);
  EXPECT_EQ(rig.dropped(), 2u);
  EXPECT_EQ(rig.send(plain_frame(mac(9), mac(1))), pairs) << "no such queue at all";
  EXPECT_EQ(rig.dropped(), 3u);
}

TEST(Steering, OneEndpointIsSteeredToo) {
  Switchboard board;
  const PortId from = board.port({}), to = board.port({});
  auto& end = board.endpoint(to, 0, 4);
  board.send(to, {plain_frame(everybody, mac(9))});
  auto table = steering(0);
  table->slots[0] = 4, table->unclassified = 5;
  board.finish([&](auto done) { board.fabric().set_steering(to, table, std::move(done)); });
  board.send(from, {flow(1), plain_frame(mac(9), mac(1))});
  EXPECT_EQ(end.received, 1u);
  EXPECT_EQ(board.counters(to).drop_no_queue.get(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Reactors, Steered, ::testing::Values(1u, 3u));

}  // namespace
}  // namespace millrace::vswitch

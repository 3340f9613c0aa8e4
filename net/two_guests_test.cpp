// Two devices on a real switch and running reactors: what one guest sends, the other receives.
#include "net/testing/two_guests.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
using testing::Bytes;
using testing::FrameSpec;
using testing::Guest;
using testing::TwoGuests;

INSTANTIATE_TEST_SUITE_P(Reactors, TwoGuests, ::testing::Values(1u, 2u));

const Bytes everybody(6, 0xff);

TEST_P(TwoGuests, ExchangeFramesAndLargePackets) {
  constexpr std::uint64_t offloads =
      nf::csum | nf::guest_csum | nf::host_tso4 | nf::guest_tso4 | virtio::feature::event_idx;
  Guest a{"a", 1, offloads | virtio::feature::ring_packed}, b{"b", 2, offloads};
  plug(a), plug(b);
  for (std::uint8_t i = 0; i < 50; ++i) {
    const FrameSpec small{.payload = 64u + i, .seed = i};
    const Bytes frame = testing::make_frame(small);
    send(a, i == 0 ? everybody : b.mac, frame, small);
    const Bytes there = receive(b);
    ASSERT_EQ(there.size(), frame.size());
    EXPECT_TRUE(std::equal(frame.begin() + 12, frame.end(), there.begin() + 12));
    send(b, a.mac, frame, small);
    ASSERT_EQ(receive(a).size(), frame.size());
    a.rx.post({1526}), b.rx.post({1526});
    ASSERT_TRUE(until([&] { return a.tx.take_used().has_value(); }));
    ASSERT_TRUE(until([&] { return b.tx.take_used().has_value(); }));
  }
  const FrameSpec large{.gso = vswitch::Gso::tcp4, .payload = 60'000, .gso_size = 1448};
  const Bytes frame = testing::make_frame(large);
  send(a, b.mac, frame, large);
  const Bytes there = receive(b);
  ASSERT_EQ(there.size(), frame.size());
  EXPECT_TRUE(std::equal(frame.begin() + 12, frame.end(), there.begin() + 12));
  // The sender counts when the receiver may have the frame already.
  EXPECT_TRUE(until([&] { return a.device->status().pairs[0].tx_packets == 51; }));
  EXPECT_EQ(b.device->status().pairs[0].rx_packets, 51u);
  unplug(a), unplug(b);
}

TEST_P(TwoGuests, AReceiverWithoutOffloadsGetsSegments) {
  Guest a{"a", 1, nf::csum | nf::host_tso4}, b{"b", 2, 0};
  plug(a), plug(b);
  const FrameSpec large{.gso = vswitch::Gso::tcp4, .payload = 20'000, .gso_size = 1000};
  send(a, everybody, testing::make_frame(large), large);
  for (int i = 0; i < 20; ++i) {
    const Bytes segment = receive(b);
    ASSERT_EQ(segment.size(), 1054u);
    EXPECT_TRUE(testing::checks_out(segment)) << i;
  }
  unplug(a), unplug(b);
}

TEST_P(TwoGuests, OneThatLeavesUnderTrafficHurtsNobody) {
  Guest a{"a", 1, 0};
  plug(a);
  const FrameSpec spec{};
  for (int round = 0; round < 5; ++round) {
    Guest b{"b", 2, 0};
    plug(b);
    for (int i = 0; i < 40; ++i) send(a, everybody, testing::make_frame(spec), spec);
    unplug(b);
    for (int i = 0; i < 40; ++i) {
      ASSERT_TRUE(until([&] { return a.tx.take_used().has_value(); }));
    }
  }
  unplug(a);
}

}  // namespace
}  // namespace millrace::net

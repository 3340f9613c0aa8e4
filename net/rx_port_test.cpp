#include "net/rx_port.hpp"

#include <gtest/gtest.h>

#include <tuple>

#include "net/testing/fakes.hpp"
#include "net/testing/guest_ring.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
namespace gso = virtio::wire::net_gso;
namespace flag = virtio::wire::net_header_flag;
using testing::Bytes;
using testing::FrameSpec;
using testing::GuestRing;
using testing::OwnedPacket;
using virtio::wire::NetHeader;
using vswitch::Gso;

// A receive queue on a reactor that does not run: the test is its thread.
struct Receiver {
  explicit Receiver(std::uint64_t bits, std::uint32_t size = 256, std::uint16_t mtu = 0,
                    bool enabled = true)
      : features{bits | virtio::feature::version_1}, ring{features, size} {
    port = std::make_unique<RxPort>(ring.open(0, enabled), features, mtu, SwitchSides{&side, 1});
    port->attached(testing::still_reactor());
  }
  ~Receiver() { port->detached(testing::still_reactor()); }

  void deliver(const vswitch::Packet& packet) {
    const vswitch::Packet* one = &packet;
    port->deliver({&one, 1});
  }

  struct Got {
    NetHeader header;
    Bytes frame;
  };
  // The next frame that the driver finds, put together from its buffers.
  std::optional<Got> next() {
    auto first = ring.take_used();
    if (!first) return std::nullopt;
    Got got{};
    EXPECT_GE(first->bytes.size(), sizeof(NetHeader));
    std::memcpy(&got.header, first->bytes.data(), sizeof(NetHeader));
    got.frame.assign(first->bytes.begin() + sizeof(NetHeader), first->bytes.end());
    for (unsigned i = 1; i < got.header.num_buffers.host(); ++i) {
      auto more = ring.take_used();
      if (!more) {
        ADD_FAILURE() << "fewer buffers than num_buffers says";
        break;
      }
      got.frame.insert(got.frame.end(), more->bytes.begin(), more->bytes.end());
    }
    return got;
  }

  std::uint64_t features;
  vswitch::PortCounters counters;
  SwitchSide side{nullptr, &counters};
  GuestRing ring;
  std::unique_ptr<RxPort> port;
};

enum class Level { none, csum, tso4, tso6, uso, all };

std::uint64_t features_of(Level level) {
  switch (level) {
    case Level::none:
      return 0;
    case Level::csum:
      return nf::guest_csum;
    case Level::tso4:
      return nf::guest_csum | nf::guest_tso4;
    case Level::tso6:
      return nf::guest_csum | nf::guest_tso6 | nf::guest_ecn;
    case Level::uso:
      return nf::guest_csum | nf::guest_uso4 | nf::guest_uso6;
    case Level::all:
      break;
  }
  return nf::guest_csum | nf::guest_tso4 | nf::guest_tso6 | nf::guest_ecn | nf::guest_uso4 |
         nf::guest_uso6;
}

using Case = std::tuple<bool, bool, bool, Level>;  // packed, in order, mergeable, offloads

class Matrix : public ::testing::TestWithParam<Case> {
 protected:
  [[nodiscard]] std::uint64_t features() const {
    const auto [packed, in_order, mergeable, level] = GetParam();
    std::uint64_t bits = features_of(level);
    if (packed) bits |= virtio::feature::ring_packed;
    if (in_order) bits |= virtio::feature::in_order;
    if (mergeable) bits |= nf::mrg_rxbuf;
    const bool ring_extras = level == Level::tso6 || level == Level::all;
    if (ring_extras) bits |= virtio::feature::indirect_desc | virtio::feature::event_idx;
    return bits;
  }
  [[nodiscard]] bool mergeable() const { return std::get<2>(GetParam()); }
  [[nodiscard]] bool has(std::uint64_t bit) const { return (features() & bit) != 0; }
  void post(Receiver& r, unsigned small, unsigned large) const {
    if (mergeable()) {
      for (unsigned i = 0; i < small; ++i) r.ring.post({12, 1514});
    } else {
      for (unsigned i = 0; i < large; ++i) r.ring.post({12, 30'000, 36'000});
    }
  }
};

// What a driver's stack would do: completes the checksum where the header asks for it.
void complete(Receiver::Got& got) {
  if ((got.header.flags & flag::needs_csum) == 0) return;
  const std::size_t start = got.header.csum_start.host();
  const std::size_t field = start + got.header.csum_offset.host();
  ASSERT_LE(field + 2, got.frame.size());
  const std::uint32_t sum = ~testing::ones_sum(got.frame, start, got.frame.size()) & 0xffff;
  testing::put16(got.frame, field, sum == 0 ? 0xffff : sum);
}

TEST_P(Matrix, DeliversEveryFrameWithRightChecksums) {
  for (const bool ipv6 : {false, true}) {
    for (const bool udp : {false, true}) {
      for (const bool partial : {false, true}) {
        for (const std::size_t payload : {0u, 1u, 60u, 100u, 1460u, 8960u}) {
          const FrameSpec spec{.ipv6 = ipv6, .udp = udp, .partial = partial, .payload = payload};
          Receiver r{features()};
          post(r, 8, 2);
          OwnedPacket sent{testing::make_frame(spec), spec, 700};
          r.deliver(sent.packet);
          auto got = r.next();
          ASSERT_TRUE(got);
          EXPECT_EQ(got->header.gso_type, gso::none);
          const bool left = partial && has(nf::guest_csum);
          EXPECT_EQ(got->header.flags, left ? flag::needs_csum : 0);
          if (left || !partial) {
            EXPECT_EQ(got->frame, sent.bytes);
          }
          complete(*got);
          EXPECT_TRUE(testing::checks_out(got->frame)) << ipv6 << udp << partial << payload;
          EXPECT_FALSE(r.next());
          EXPECT_EQ(r.counters.rx_packets.get(), 1u);
          EXPECT_EQ(r.counters.rx_bytes.get(), sent.bytes.size());
          EXPECT_EQ(r.counters.checksummed.get(), partial && !left ? 1u : 0u);
        }
      }
    }
  }
}

void expect_segments(Receiver& r, const FrameSpec& spec, const Bytes& sent) {
  Bytes payload;
  std::size_t count = 0;
  while (auto got = r.next()) {
    EXPECT_EQ(got->header.gso_type, gso::none);
    complete(*got);
    EXPECT_TRUE(testing::checks_out(got->frame)) << "segment " << count;
    EXPECT_LE(got->frame.size(), testing::headers_size(spec) + spec.gso_size);
    payload.insert(payload.end(), got->frame.begin() + std::ptrdiff_t(testing::headers_size(spec)),
                   got->frame.end());
    ++count;
  }
  EXPECT_EQ(count, (spec.payload + spec.gso_size - 1) / spec.gso_size);
  EXPECT_TRUE(std::equal(payload.begin(), payload.end(),
                         sent.begin() + std::ptrdiff_t(testing::headers_size(spec)), sent.end()));
  EXPECT_EQ(r.counters.segmented.get(), 1u);
  EXPECT_EQ(r.counters.rx_packets.get(), count);
}

TEST_P(Matrix, PassesLargePacketsWholeOrInSegments) {
  const FrameSpec specs[] = {
      {.gso = Gso::tcp4, .payload = 9001},
      {.ecn = true, .gso = Gso::tcp4, .payload = 9001},
      {.ipv6 = true, .gso = Gso::tcp6, .payload = 9001},
      {.ipv6 = true, .ecn = true, .gso = Gso::tcp6, .payload = 9001},
      {.udp = true, .gso = Gso::udp_l4, .payload = 9001},
      {.ipv6 = true, .udp = true, .gso = Gso::udp_l4, .payload = 9001},
  };
  for (const FrameSpec& spec : specs) {
    const std::uint64_t wanted = spec.udp ? (spec.ipv6 ? nf::guest_uso6 : nf::guest_uso4)
                                          : (spec.ipv6 ? nf::guest_tso6 : nf::guest_tso4);
    const bool whole = has(wanted) && (!spec.ecn || has(nf::guest_ecn));
    Receiver r{features()};
    post(r, 40, 12);
    OwnedPacket sent{testing::make_frame(spec), spec, 1333};
    r.deliver(sent.packet);
    if (!whole) {
      expect_segments(r, spec, sent.bytes);
      continue;
    }
    auto got = r.next();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->frame, sent.bytes);
    EXPECT_EQ(got->header.flags, flag::needs_csum);
    EXPECT_NE(got->header.gso_type & ~gso::ecn, gso::none);
    EXPECT_EQ((got->header.gso_type & gso::ecn) != 0, spec.ecn);
    EXPECT_EQ(got->header.gso_size.host(), spec.gso_size);
    EXPECT_EQ(got->header.hdr_len.host(), testing::headers_size(spec));
    EXPECT_EQ(r.counters.segmented.get(), 0u);
    EXPECT_FALSE(r.next());
  }
}

TEST_P(Matrix, KeepsOrderOverManyBurstsAndTheRingsEnd) {
  Receiver r{features(), 64};
  std::uint8_t sent = 0, seen = 0;
  for (int round = 0; round < 60; ++round) {
    post(r, 9, 3);
    std::vector<std::unique_ptr<OwnedPacket>> burst;
    std::vector<const vswitch::Packet*> pointers;
    for (int i = 0; i < 3; ++i) {
      const FrameSpec spec{.payload = mergeable() ? 3000u : 900u, .seed = sent++};
      burst.push_back(std::make_unique<OwnedPacket>(testing::make_frame(spec), spec));
      pointers.push_back(&burst.back()->packet);
    }
    r.port->deliver(pointers);
    for (int i = 0; i < 3; ++i, ++seen) {
      auto got = r.next();
      ASSERT_TRUE(got) << "round " << round;
      EXPECT_EQ(got->frame, burst[std::size_t(i)]->bytes);
    }
  }
  EXPECT_EQ(r.port->traffic().packets.get(), 180u);
}

INSTANTIATE_TEST_SUITE_P(RxPort, Matrix,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool(), ::testing::Bool(),
                                            ::testing::Values(Level::none, Level::csum, Level::tso4,
                                                              Level::tso6, Level::uso,
                                                              Level::all)));

class BothRings : public ::testing::TestWithParam<bool> {
 protected:
  [[nodiscard]] static std::uint64_t packed() {
    return GetParam() ? virtio::feature::ring_packed : 0;
  }
};
INSTANTIATE_TEST_SUITE_P(RxPort, BothRings, ::testing::Bool());

OwnedPacket plain(std::size_t payload) {
  const FrameSpec spec{.payload = payload};
  return OwnedPacket{testing::make_frame(spec), spec};
}

TEST_P(BothRings, CarriesJumboFramesAndSixtyFourKilobytes) {
  Receiver r{packed() | nf::mrg_rxbuf | features_of(Level::all)};
  for (int i = 0; i < 60; ++i) r.ring.post({1526});
  const FrameSpec jumbo{.payload = 9216 - 54};
  OwnedPacket first{testing::make_frame(jumbo), jumbo};
  r.deliver(first.packet);
  auto got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, first.bytes);
  EXPECT_EQ(got->header.num_buffers.host(), 7);
  const FrameSpec largest{.gso = Gso::tcp4, .payload = 65'535 - 54, .gso_size = 1448};
  OwnedPacket second{testing::make_frame(largest), largest};
  r.deliver(second.packet);
  got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, second.bytes);
}

TEST_P(BothRings, DropsWhenThereIsNoBufferAndDeliversAgainLater) {
  Receiver r{packed() | nf::mrg_rxbuf};
  const OwnedPacket packet = plain(100);
  r.deliver(packet.packet);
  EXPECT_EQ(r.counters.drop_ring_full.get(), 1u);
  r.ring.post({1526});
  r.deliver(packet.packet);
  EXPECT_TRUE(r.next());
  EXPECT_EQ(r.counters.rx_packets.get(), 1u);
}

TEST_P(BothRings, GivesBuffersBackToTheRingWhenTheyDoNotSuffice) {
  Receiver r{packed() | nf::mrg_rxbuf};
  for (int i = 0; i < 3; ++i) r.ring.post({1000});
  r.deliver(plain(5000).packet);
  EXPECT_EQ(r.counters.drop_ring_full.get(), 1u);
  EXPECT_FALSE(r.next()) << "no buffer may be used for a packet that was dropped";
  const OwnedPacket fits = plain(2500);
  r.deliver(fits.packet);
  auto got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, fits.bytes);
  EXPECT_EQ(got->header.num_buffers.host(), 3);
}

TEST_P(BothRings, SegmentsALargePacketThatTheRingCannotHold) {
  Receiver r{packed() | nf::mrg_rxbuf | features_of(Level::all), 8};
  for (int i = 0; i < 8; ++i) r.ring.post({1526});
  const FrameSpec spec{.gso = Gso::tcp4, .payload = 30'000};
  OwnedPacket sent{testing::make_frame(spec), spec};
  r.deliver(sent.packet);
  EXPECT_EQ(r.counters.segmented.get(), 1u);
  EXPECT_EQ(r.counters.rx_packets.get(), 8u);
  EXPECT_EQ(r.counters.drop_ring_full.get(), 22u);
  for (int i = 0; i < 8; ++i) {
    auto got = r.next();
    ASSERT_TRUE(got);
    complete(*got);
    EXPECT_TRUE(testing::checks_out(got->frame));
  }
}

TEST_P(BothRings, WithoutMergeableBuffersOneMustHoldTheFrame) {
  Receiver r{packed()};
  r.ring.post({12, 1514});
  r.deliver(plain(1600).packet);
  EXPECT_EQ(r.counters.drop_too_long.get(), 1u);
  EXPECT_FALSE(r.next());
  const OwnedPacket exact = plain(1514 - 54);
  r.deliver(exact.packet);
  auto got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, exact.bytes);
  EXPECT_EQ(got->header.num_buffers.host(), 1);
}

TEST_P(BothRings, FillsBuffersOfAnyShape) {
  Receiver r{packed() | nf::mrg_rxbuf};
  const OwnedPacket packet = plain(1000);
  r.ring.post(std::vector<std::size_t>(200, 1));  // the header and more in single bytes
  r.ring.post({5, 7, 1, 900});
  r.deliver(packet.packet);
  auto got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, packet.bytes);
  EXPECT_EQ(got->header.num_buffers.host(), 2);
}

TEST_P(BothRings, HeaderAloneInTheFirstBuffer) {
  Receiver r{packed() | nf::mrg_rxbuf};
  const OwnedPacket packet = plain(300);
  r.ring.post({12});
  r.ring.post({2048});
  r.deliver(packet.packet);
  auto got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, packet.bytes);
}

TEST_P(BothRings, ABufferShorterThanTheHeaderPoisonsTheQueue) {
  for (const std::uint64_t mergeable : {std::uint64_t{0}, nf::mrg_rxbuf}) {
    Receiver r{packed() | mergeable};
    r.ring.post({11});
    r.ring.post({2048});
    r.deliver(plain(100).packet);
    EXPECT_EQ(r.port->queue().fault(), virtio::Fault::request_malformed);
    r.deliver(plain(100).packet);
    EXPECT_EQ(r.counters.drop_queue_fault.get(), 2u);
    EXPECT_FALSE(r.next());
  }
}

TEST_P(BothRings, ABufferWithNothingToWritePoisonsTheQueue) {
  Receiver r{packed() | nf::mrg_rxbuf};
  r.ring.send({Bytes(100, 0)});
  r.deliver(plain(100).packet);
  EXPECT_EQ(r.port->queue().fault(), virtio::Fault::request_malformed);
}

TEST_P(BothRings, AQueueThatIsNotEnabledDrops) {
  Receiver r{packed() | nf::mrg_rxbuf, 16, 0, false};
  r.ring.post({2048});
  r.deliver(plain(100).packet);
  EXPECT_EQ(r.counters.drop_no_queue.get(), 1u);
  EXPECT_FALSE(r.next());
}

TEST_P(BothRings, NothingIsDeliveredAfterQuiesce) {
  Receiver r{packed() | nf::mrg_rxbuf};
  r.ring.post({2048});
  r.port->quiesce();
  EXPECT_TRUE(r.port->drained());
  r.deliver(plain(100).packet);
  EXPECT_EQ(r.counters.drop_no_queue.get(), 1u);
  EXPECT_FALSE(r.next());
}

TEST_P(BothRings, KeepsToTheMtuThatTheGuestWasTold) {
  Receiver r{packed() | nf::mrg_rxbuf | nf::mtu, 16, 1500};
  for (int i = 0; i < 4; ++i) r.ring.post({2048});
  r.deliver(plain(1461).packet);
  EXPECT_EQ(r.counters.drop_too_long.get(), 1u);
  r.deliver(plain(1460).packet);
  EXPECT_TRUE(r.next());
  // A VLAN tag does not count.
  Bytes tagged = plain(1460).bytes;
  const Bytes tag{0x81, 0x00, 0x00, 0x0a};
  tagged.insert(tagged.begin() + 12, tag.begin(), tag.end());
  OwnedPacket packet{tagged, FrameSpec{}};
  r.deliver(packet.packet);
  auto got = r.next();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->frame, tagged);
}

TEST_P(BothRings, LegacyHeaderHasTenBytes) {
  const std::uint64_t features = packed();
  vswitch::PortCounters counters;
  SwitchSide side{nullptr, &counters};
  GuestRing ring{features, 16};
  RxPort port{ring.open(0, true), features, 0, SwitchSides{&side, 1}};
  port.attached(testing::still_reactor());
  ring.post({2048});
  const OwnedPacket packet = plain(100);
  const vswitch::Packet* one = &packet.packet;
  port.deliver({&one, 1});
  auto got = ring.take_used();
  ASSERT_TRUE(got);
  EXPECT_EQ(Bytes(got->bytes.begin() + 10, got->bytes.end()), packet.bytes);
  port.detached(testing::still_reactor());
}

TEST_P(BothRings, MarksWhatItWroteInTheDirtyLog) {
  Receiver r{packed() | nf::mrg_rxbuf};
  r.ring.start_log(*r.port);
  r.ring.post({12, 5000});
  r.ring.post({12, 5000});
  const OwnedPacket packet = plain(7000);
  r.deliver(packet.packet);
  ASSERT_TRUE(r.next());
  EXPECT_TRUE(r.ring.every_written_page_is_logged());
}

TEST_P(BothRings, NeverAsksForKicks) {
  Receiver r{packed() | nf::mrg_rxbuf};
  r.ring.post({2048});
  EXPECT_FALSE(r.port->arm());
  EXPECT_FALSE(r.port->poll());
  EXPECT_FALSE(r.ring.wants_kick());
}

}  // namespace
}  // namespace millrace::net

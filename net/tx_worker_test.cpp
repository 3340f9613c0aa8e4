#include "net/tx_worker.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "net/offload.hpp"
#include "net/testing/fakes.hpp"
#include "net/testing/guest_ring.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
namespace gso = virtio::wire::net_gso;
namespace flag = virtio::wire::net_header_flag;
using base::le16;
using testing::Bytes;
using testing::FrameSpec;
using testing::GuestRing;
using virtio::wire::NetHeader;
using vswitch::Gso;

constexpr std::uint64_t offloads =
    nf::csum | nf::host_tso4 | nf::host_tso6 | nf::host_ecn | nf::host_uso;

// A transmit queue on a reactor that does not run: the test is its thread.
struct Sender {
  explicit Sender(std::uint64_t bits, std::uint32_t size = 256, bool enabled = true)
      : features{bits | virtio::feature::version_1}, ring{features, size} {
    worker = std::make_unique<TxWorker>(ring.open(1, enabled), features, 5, SwitchSides{&side, 1});
    worker->attached(testing::still_reactor());
  }
  ~Sender() { worker->detached(testing::still_reactor()); }

  void run() {
    for (int i = 0; i < 1000 && worker->poll(); ++i) {
    }
  }
  [[nodiscard]] std::size_t used() {
    std::size_t count = 0;
    while (auto done = ring.take_used()) {
      EXPECT_EQ(done->length, 0u);
      ++count;
    }
    return count;
  }

  std::uint64_t features;
  testing::FakeBridge bridge;
  vswitch::PortCounters counters;
  SwitchSide side{&bridge, &counters};
  GuestRing ring;
  std::unique_ptr<TxWorker> worker;
};

Bytes raw(const NetHeader& header, std::size_t size = 12) {
  Bytes out(size);
  std::memcpy(out.data(), &header, size);
  return out;
}

NetHeader header_for(const FrameSpec& spec) {
  const vswitch::Offload o = testing::offload_of(spec);
  Acceptance all{true, true, true, true, true, true};
  NetHeader h = describe(o, all);
  h.num_buffers = le16{0};
  return h;
}

// `bytes` in pieces of `size`.
std::vector<Bytes> cut(const Bytes& bytes, std::size_t size) {
  std::vector<Bytes> out;
  for (std::size_t at = 0; at < bytes.size(); at += size) {
    const auto from = bytes.begin() + std::ptrdiff_t(at);
    out.emplace_back(from, from + std::ptrdiff_t(std::min(size, bytes.size() - at)));
  }
  return out;
}

Bytes joined(const Bytes& a, const Bytes& b) {
  Bytes out = a;
  out.insert(out.end(), b.begin(), b.end());
  return out;
}

class Rings : public ::testing::TestWithParam<std::tuple<bool, bool, bool>> {
 protected:
  [[nodiscard]] static std::uint64_t ring_bits() {
    const auto [packed, in_order, indirect] = GetParam();
    return (packed ? virtio::feature::ring_packed : 0) |
           (in_order ? virtio::feature::in_order : 0) |
           (indirect ? virtio::feature::indirect_desc : 0);
  }
};
INSTANTIATE_TEST_SUITE_P(TxWorker, Rings,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool(),
                                            ::testing::Bool()));

TEST_P(Rings, ForwardsFramesOfEveryLayout) {
  const FrameSpec spec{.payload = 400};
  const Bytes frame = testing::make_frame(spec), header = raw(NetHeader{});
  std::vector<std::vector<Bytes>> layouts;
  layouts.push_back({header, frame});
  layouts.push_back({joined(header, frame)});
  layouts.push_back(cut(joined(header, frame), 1));  // header and data in single bytes
  layouts.push_back(cut(joined(header, frame), 3));
  layouts.push_back({Bytes(header.begin(), header.begin() + 5),
                     joined(Bytes(header.begin() + 5, header.end()), frame)});
  Sender s{ring_bits() | offloads, 1024};
  for (const auto& layout : layouts) {
    s.ring.send(layout);
    s.run();
    ASSERT_EQ(s.used(), 1u);
    ASSERT_FALSE(s.bridge.seen.empty());
    EXPECT_EQ(s.bridge.seen.back().bytes, frame) << layout.size() << " descriptors";
    EXPECT_EQ(s.bridge.seen.back().source, 5);
  }
  EXPECT_EQ(s.bridge.seen.size(), layouts.size());
  EXPECT_EQ(s.worker->traffic().packets.get(), layouts.size());
}

TEST_P(Rings, LinearisesWhatHasMoreSegmentsThanViews) {
  Sender s{ring_bits() | offloads, 1024};
  const FrameSpec spec{.gso = Gso::tcp4, .payload = 64'000};
  const Bytes frame = testing::make_frame(spec);
  s.ring.send(cut(joined(raw(header_for(spec)), frame), 330));  // 194 descriptors
  s.ring.send({raw(NetHeader{}), testing::make_frame({.payload = 500})});
  s.run();
  EXPECT_EQ(s.used(), 2u);
  ASSERT_EQ(s.bridge.seen.size(), 2u);
  EXPECT_EQ(s.bridge.seen[0].bytes, frame);
  EXPECT_EQ(s.bridge.seen[0].views, 1);
  EXPECT_EQ(s.bridge.seen[1].bytes, testing::make_frame({.payload = 500}));
}

TEST_P(Rings, CarriesOffloadRequests) {
  for (const FrameSpec& spec :
       {FrameSpec{.partial = true}, FrameSpec{.gso = Gso::tcp4, .payload = 5000},
        FrameSpec{.ipv6 = true, .gso = Gso::tcp6, .payload = 5000},
        FrameSpec{.ecn = true, .gso = Gso::tcp4, .payload = 5000},
        FrameSpec{.udp = true, .gso = Gso::udp_l4, .payload = 5000}}) {
    Sender s{ring_bits() | offloads};
    s.ring.send({raw(header_for(spec)), testing::make_frame(spec)});
    s.run();
    ASSERT_EQ(s.bridge.seen.size(), 1u);
    const vswitch::Offload& o = s.bridge.seen[0].offload;
    EXPECT_TRUE(o.checksum_needed);
    EXPECT_EQ(o.gso, spec.gso);
    EXPECT_EQ(o.ecn, spec.ecn);
    EXPECT_EQ(o.gso_size, spec.gso == Gso::none ? 0 : spec.gso_size);
    EXPECT_EQ(o.checksum_start, testing::offload_of(spec).checksum_start);
  }
}

TEST_P(Rings, DropsAndReturnsHostileFrames) {
  const Bytes frame = testing::make_frame({.payload = 100});
  const auto tampered = [](auto change) {
    NetHeader h = header_for({.gso = Gso::tcp4, .payload = 100, .gso_size = 50});
    change(h);
    return raw(h);
  };
  std::vector<std::vector<Bytes>> hostile;
  for (std::size_t size = 1; size <= 12; ++size) hostile.push_back({Bytes(size, 0)});
  hostile.push_back({raw(NetHeader{}), Bytes(13, 0)});
  hostile.push_back({raw(NetHeader{}), Bytes(vswitch::Packet::length_max + 1, 0)});
  hostile.push_back({tampered([](NetHeader& h) { h.gso_size = le16{0}; }), frame});
  hostile.push_back({tampered([](NetHeader& h) { h.flags = 0; }), frame});
  for (const int type : {2, 3, 6, 7, 0x7f, 0x80, 0x82, 0x85, 0xff}) {
    const auto byte = static_cast<std::uint8_t>(type);
    hostile.push_back({tampered([byte](NetHeader& h) { h.gso_type = byte; }), frame});
  }
  Sender s{ring_bits() | offloads};
  for (const auto& chain : hostile) s.ring.send(chain);
  s.ring.send({raw(NetHeader{}), frame});  // an honest one after all of them
  s.run();
  EXPECT_EQ(s.used(), hostile.size() + 1);
  EXPECT_EQ(s.counters.drop_malformed.get(), hostile.size());
  ASSERT_EQ(s.bridge.seen.size(), 1u);
  EXPECT_EQ(s.bridge.seen[0].bytes, frame);
  EXPECT_EQ(s.worker->queue().fault(), virtio::Fault::none);
}

TEST_P(Rings, WhatIsDroppedLeavesItsNeighboursInOrder) {
  Sender s{ring_bits() | offloads, 64};
  NetHeader bad{};
  bad.gso_type = 77;
  std::vector<Bytes> good;
  for (std::size_t i = 0; i < 20; ++i) {
    const Bytes frame = testing::make_frame({.payload = 100 + i});
    const bool whole = i % 3 != 0;  // the others' headers are in parts
    const bool dropped = i < 2 || i == 9 || i == 10 || i == 19;
    const Bytes header = raw(dropped ? bad : NetHeader{});
    if (whole) s.ring.send({joined(header, frame)});
    if (!whole) s.ring.send({header, frame});
    if (!dropped) good.push_back(frame);
  }
  ASSERT_TRUE(s.worker->poll());
  ASSERT_EQ(s.bridge.seen.size(), good.size());
  for (std::size_t i = 0; i < good.size(); ++i) EXPECT_EQ(s.bridge.seen[i].bytes, good[i]);
  EXPECT_EQ(s.counters.drop_malformed.get(), 5u);
  EXPECT_EQ(s.worker->traffic().packets.get(), good.size());
  EXPECT_EQ(s.used(), 20u);
}

TEST_P(Rings, WithoutOffloadsNoRequestIsTaken) {
  Sender s{ring_bits()};
  const FrameSpec spec{.partial = true};
  s.ring.send({raw(header_for(spec)), testing::make_frame(spec)});
  s.run();
  EXPECT_EQ(s.used(), 1u);
  EXPECT_EQ(s.counters.drop_malformed.get(), 1u);
  EXPECT_TRUE(s.bridge.seen.empty());
}

TEST_P(Rings, HeaderBytesAreThoseThatWereFetched) {
  const FrameSpec spec{.payload = 600};
  const Bytes frame = testing::make_frame(spec);
  Sender s{ring_bits() | offloads};
  const unsigned chain = s.ring.send({joined(raw(NetHeader{}), frame)});
  s.bridge.hook = [&](std::span<vswitch::Packet>) {
    for (std::size_t i = 0; i < 12 + vswitch::Packet::header_max; ++i) s.ring.flip_sent(chain, i);
  };
  s.run();
  ASSERT_EQ(s.bridge.seen.size(), 1u);
  EXPECT_EQ(s.bridge.seen[0].bytes, frame);
}

TEST_P(Rings, BurstsAreBoundedByCountAndByBytes) {
  Sender s{ring_bits() | offloads, 256};
  for (int i = 0; i < 100; ++i) s.ring.send({raw(NetHeader{}), Bytes(60, 1)});
  s.run();
  EXPECT_EQ(s.used(), 100u);
  for (const std::size_t burst : s.bridge.bursts) EXPECT_LE(burst, vswitch::burst_max);
  s.bridge.bursts.clear();
  for (int i = 0; i < 20; ++i) s.ring.send({raw(NetHeader{}), Bytes(60'000, 1)});
  s.run();
  EXPECT_EQ(s.used(), 20u);
  for (const std::size_t burst : s.bridge.bursts) EXPECT_LE(burst, 9u);
}

TEST_P(Rings, KeepsGoingOverTheRingsEnd) {
  Sender s{ring_bits() | offloads, 8};
  for (std::uint8_t i = 0; i < 200; ++i) {
    const Bytes frame = testing::make_frame({.payload = 64, .seed = i});
    s.ring.send({raw(NetHeader{}), frame});
    s.run();
    ASSERT_EQ(s.used(), 1u);
    ASSERT_EQ(s.bridge.seen.back().bytes, frame);
  }
}

TEST_P(Rings, FramesWaitUntilTheFirstEnable) {
  Sender s{ring_bits(), 16, false};
  s.ring.send({raw(NetHeader{}), Bytes(60, 1)});
  s.run();
  EXPECT_FALSE(s.worker->arm());
  EXPECT_EQ(s.used(), 0u);
  EXPECT_EQ(s.worker->sleep_ns_max(), base::Poller::sleep_for_ever);
}

TEST_P(Rings, NothingIsTakenAfterQuiesce) {
  Sender s{ring_bits(), 16};
  s.worker->quiesce();
  s.ring.send({raw(NetHeader{}), Bytes(60, 1)});
  s.run();
  EXPECT_TRUE(s.worker->drained());
  EXPECT_EQ(s.used(), 0u);
}

TEST_P(Rings, ArmFindsWorkAndAsksForKicks) {
  Sender s{ring_bits(), 16};
  EXPECT_FALSE(s.ring.wants_kick());
  EXPECT_FALSE(s.worker->arm());
  EXPECT_TRUE(s.ring.wants_kick());
  s.ring.send({raw(NetHeader{}), Bytes(60, 1)});
  EXPECT_TRUE(s.worker->arm());
  s.worker->disarm();
  s.run();
  EXPECT_EQ(s.used(), 1u);
}

TEST_P(Rings, ABadChainPoisonsAfterWhatCameBefore) {
  Sender s{ring_bits(), 16};
  s.ring.send({raw(NetHeader{}), Bytes(60, 1)});
  s.ring.send_outside_memory();
  s.run();
  EXPECT_EQ(s.bridge.seen.size(), 1u);
  EXPECT_EQ(s.worker->queue().fault(), virtio::Fault::address_outside_memory);
  EXPECT_FALSE(s.worker->poll());
}

}  // namespace
}  // namespace millrace::net

// A frame's whole way: transmit queue, a switch that a test stands in for, receive queue.
#include <gtest/gtest.h>

#include "net/offload.hpp"
#include "net/testing/two_queues.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
using testing::Bytes;
using testing::FrameSpec;
using virtio::wire::NetHeader;

constexpr std::uint64_t all = virtio::feature::version_1 | nf::mrg_rxbuf | nf::csum |
                              nf::guest_csum | nf::host_tso4 | nf::guest_tso4;

struct FakeSwitch {
  testing::FakeBridge bridge;
  vswitch::PortCounters counters;
};

struct Path : FakeSwitch, testing::TwoQueues {
  explicit Path(std::uint64_t features)
      : TwoQueues{{.sender = features, .receiver = features},
                  5,
                  SwitchSide{&bridge, &counters},
                  SwitchSide{&bridge, &counters}} {}
  void deliver(std::span<vswitch::Packet> packets) {
    for (const vswitch::Packet& p : packets) {
      const vswitch::Packet* one = &p;
      rx->deliver({&one, 1});
    }
  }
  Bytes received() {
    Bytes out;
    while (auto done = receiving.take_used()) {
      const std::size_t skip = out.empty() ? sizeof(NetHeader) : 0;
      out.insert(out.end(), done->bytes.begin() + std::ptrdiff_t(skip), done->bytes.end());
    }
    return out;
  }
};

// The sender rewrites its header, one byte at a time, after the switch has decided and before the
// receiver's copy is made.
TEST(Path, TheReceiverGetsTheHeaderThatWasDecidedOn) {
  for (const std::uint64_t packed : {std::uint64_t{0}, virtio::feature::ring_packed}) {
    for (const std::size_t payload : {20u, 2000u}) {
      const FrameSpec spec{.payload = payload};
      const Bytes frame = testing::make_frame(spec);
      const std::size_t fetched = std::min(frame.size(), vswitch::Packet::header_max);
      Path path{all | packed};
      for (std::size_t flipped = 0; flipped < sizeof(NetHeader) + fetched; ++flipped) {
        path.receiving.post({4096});
        Bytes whole(sizeof(NetHeader));
        whole.insert(whole.end(), frame.begin(), frame.end());
        const unsigned chain = path.sending.send({whole});
        path.bridge.hook = [&](std::span<vswitch::Packet> packets) {
          path.sending.flip_sent(chain, flipped);
          path.deliver(packets);
        };
        ASSERT_TRUE(path.tx->poll());
        ASSERT_EQ(path.received(), frame) << "byte " << flipped;
        ASSERT_TRUE(path.sending.take_used());
      }
    }
  }
}

TEST(Path, LargePacketsPassUntouched) {
  for (const std::uint64_t packed : {std::uint64_t{0}, virtio::feature::ring_packed}) {
    Path path{all | packed};
    path.bridge.hook = [&](std::span<vswitch::Packet> packets) { path.deliver(packets); };
    const FrameSpec spec{.gso = vswitch::Gso::tcp4, .payload = 65'000, .gso_size = 1448};
    const Bytes frame = testing::make_frame(spec);
    const Acceptance acceptance{true, true, true, true, true, true};
    NetHeader header = describe(testing::offload_of(spec), acceptance);
    Bytes raw(sizeof(header));
    std::memcpy(raw.data(), &header, sizeof(header));
    for (int i = 0; i < 60; ++i) path.receiving.post({1526});
    path.sending.send({raw, frame});
    ASSERT_TRUE(path.tx->poll());
    EXPECT_EQ(path.received(), frame);
    EXPECT_EQ(path.counters.segmented.get(), 0u);
  }
}

}  // namespace
}  // namespace millrace::net

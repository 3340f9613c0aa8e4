#include "net/device.hpp"

#include <gtest/gtest.h>

#include "net/testing/device_rig.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using testing::Bytes;
using testing::GuestRing;

constexpr vswitch::Mac guest_mac{0x52, 0x54, 0, 1, 2, 3};

using testing::ControlQueueTest, testing::NetDeviceTest;

TEST_F(NetDeviceTest, OffersWhatItDoes) {
  const std::uint64_t plain = make({.name = "a"}).features();
  constexpr std::uint64_t offered =
      vf::version_1 | vf::any_layout | vf::indirect_desc | vf::event_idx | vf::ring_packed |
      vf::in_order | nf::mrg_rxbuf | nf::csum | nf::guest_csum | nf::host_tso4 | nf::host_tso6 |
      nf::host_ecn | nf::host_uso | nf::guest_tso4 | nf::guest_tso6 | nf::guest_ecn |
      nf::guest_uso4 | nf::guest_uso6 | nf::status | nf::guest_announce;
  EXPECT_EQ(plain, offered) << std::hex << (plain ^ offered);
}

TEST_F(NetDeviceTest, OffersFollowTheConfiguration) {
  const std::uint64_t bits = make({.name = "a",
                                   .pairs = 4,
                                   .mac = guest_mac,
                                   .mtu = 9000,
                                   .offloads = false,
                                   .packed = false,
                                   .in_order = false,
                                   .ring_reset = true})
                                 .features();
  const std::uint64_t wanted = nf::mq | nf::mac | nf::mtu | vf::ring_reset;
  EXPECT_EQ(bits & wanted, wanted);
  EXPECT_EQ(bits & (vf::ring_packed | vf::in_order | nf::csum | nf::guest_csum | nf::host_tso4 |
                    nf::guest_tso6 | nf::host_uso),
            0u);
  EXPECT_EQ(device_->queues_max(), 8u);
}

TEST_F(NetDeviceTest, ConfigurationSpace) {
  make({.name = "a", .pairs = 4, .mac = guest_mac, .mtu = 9000});
  EXPECT_EQ(config_space().status.host(), 1);
  EXPECT_EQ(config_space().max_virtqueue_pairs.host(), 4);
  EXPECT_EQ(config_space().mtu.host(), 9000);
  EXPECT_EQ(std::memcmp(config_space().mac, guest_mac.data(), 6), 0);
  ASSERT_TRUE(device_->set_mtu(1400));
  EXPECT_EQ(config_space().mtu.host(), 1400);
  EXPECT_FALSE(device_->set_mtu(67));
  const std::byte zero{};
  EXPECT_FALSE(device_->write_config(0, {&zero, 1}));
}

TEST_F(NetDeviceTest, TellsItsDriverOfTheLink) {
  make({.name = "a", .mac = guest_mac});
  EXPECT_FALSE(device_->offers_config());
  make({.name = "a", .mac = guest_mac, .link_changes = true});
  EXPECT_TRUE(device_->offers_config());
  unsigned told = 0;
  device_->on_config_change([&told] { ++told; });
  device_->set_link(true);  // as it is
  EXPECT_EQ(told, 0u);
  device_->set_link(false);
  EXPECT_EQ(told, 1u);
  EXPECT_EQ(config_space().status.host(), 0);
  EXPECT_FALSE(device_->status().link_up);
  device_->set_features(0);  // a driver that begins anew has the same wire
  EXPECT_EQ(config_space().status.host(), 0);
  device_->set_link(true);
  EXPECT_EQ(told, 2u);
  EXPECT_EQ(config_space().status.host(), 1);
  device_->on_config_change({});
}

TEST_F(NetDeviceTest, RefusesABadConfigurationInOneLine) {
  const auto refused = [&](const Config& config) {
    const std::string line = error_of(config, *pool_, *fabric_);
    EXPECT_EQ(line.find('\n'), std::string::npos);
    return !line.empty();
  };
  EXPECT_TRUE(refused({.name = "a", .pairs = 0}));
  EXPECT_TRUE(refused({.name = "a", .pairs = 129}));
  EXPECT_TRUE(refused({.name = "a", .mac = vswitch::Mac{1, 0, 0, 0, 0, 0}}));
  EXPECT_TRUE(refused({.name = "a", .mac = vswitch::Mac{}}));
  EXPECT_TRUE(refused({.name = "a", .mtu = 67}));
  EXPECT_TRUE(refused({.name = "a", .pairs = 128, .control_queue = true}));
  EXPECT_EQ(fabric_->ports, 0);
  make({.name = "a", .pairs = 128});
}

TEST_F(NetDeviceTest, AnnouncesThroughTheSwitch) {
  make({.name = "a"});
  ASSERT_TRUE(device_->announce(guest_mac));
  ASSERT_TRUE(until([&] { return forwarded() == 1; }));
  const auto& bridge = fabric_->bridges[fabric_->bridges[0].count.load() == 1 ? 0 : 1];
  EXPECT_EQ(bridge.last_length, 60u);
  EXPECT_EQ(bridge.last[12], std::byte{0x80});
  EXPECT_EQ(bridge.last[13], std::byte{0x35});
  EXPECT_FALSE(device_->announce(vswitch::Mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}));
}

TEST_F(NetDeviceTest, AnnouncesInEveryVlanOfATrunk) {
  Config config{.name = "a"};
  config.port.trunk = {10, 20};
  make(config);
  ASSERT_TRUE(device_->announce(guest_mac));
  EXPECT_TRUE(until([&] { return forwarded() == 2; }));
}

TEST_F(NetDeviceTest, AReceiveQueueIsAnEndpointWhileItIsEnabled) {
  make({.name = "a", .pairs = 2});
  const std::uint64_t features = vf::version_1 | nf::mrg_rxbuf | nf::mq;
  device_->set_features(features);
  std::vector<std::unique_ptr<GuestRing>> rings;
  for (unsigned i = 0; i < 4; ++i) {
    rings.push_back(std::make_unique<GuestRing>(features, 16));
    start(i, *rings[i], false);
  }
  EXPECT_TRUE(fabric_->endpoints.empty());
  for (unsigned i = 0; i < 2; ++i) enable(i, true);
  EXPECT_EQ(fabric_->endpoints.size(), 1u);
  EXPECT_EQ(fabric_->endpoints.count(0), 1u);
  for (unsigned i = 2; i < 4; ++i) enable(i, true);
  EXPECT_EQ(fabric_->endpoints.size(), 2u);
  enable(2, true);
  EXPECT_EQ(fabric_->endpoints.size(), 2u);
  EXPECT_EQ(fabric_->endpoints.at(1).reactor, device_->queue_status(2).reactor);
  enable(2, false);
  EXPECT_EQ(fabric_->endpoints.count(1), 0u);
  enable(2, true);
  for (unsigned i = 0; i < 4; ++i) stop(i);
  EXPECT_TRUE(fabric_->endpoints.empty());
  close();
}

TEST_F(NetDeviceTest, TransmitsWhenEnabledAndDiscardsWhenDisabledAgain) {
  make({.name = "a"});
  const std::uint64_t features = vf::version_1 | nf::csum | nf::guest_csum;
  device_->set_features(features);
  GuestRing ring{features, 16};
  ring.send({Bytes(12, 0), testing::make_frame({})});  // before it is enabled, with its kick
  start(1, ring, false);
  ring.kick();
  EXPECT_EQ(forwarded(), 0u);
  enable(1, true);
  ASSERT_TRUE(until([&] { return ring.take_used().has_value(); }));
  EXPECT_EQ(forwarded(), 1u);
  enable(1, false);
  ring.send({Bytes(12, 0), testing::make_frame({})});
  ring.kick();
  ASSERT_TRUE(until([&] { return ring.take_used().has_value(); }));
  EXPECT_EQ(forwarded(), 1u);
  Status status = device_->status();
  ASSERT_EQ(status.pairs.size(), 1u);
  EXPECT_EQ(status.pairs[0].tx_packets, 1u);
  EXPECT_EQ(status.offloads, "csum guest_csum");
  EXPECT_TRUE(status.pairs[0].tx.started);
  stop(1);
  status = device_->status();
  EXPECT_EQ(status.pairs[0].tx_packets, 1u) << "counts outlive the queue";
  EXPECT_FALSE(status.pairs[0].tx.started);
  close();
}

TEST_F(NetDeviceTest, WakesFromSleepByAKick) {
  make({.name = "a"});
  device_->set_features(vf::version_1 | vf::event_idx);
  GuestRing ring{vf::version_1 | vf::event_idx, 16};
  start(1, ring, true);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(until([&] { return ring.wants_kick(); })) << "the reactor went to sleep";
    ring.send({Bytes(12, 0), testing::make_frame({})});
    ring.kick();
    ASSERT_TRUE(until([&] { return ring.take_used().has_value(); }));
  }
  EXPECT_EQ(forwarded(), 5u);
  stop(1);
  close();
}

TEST_F(ControlQueueTest, TheDriverChoosesHowManyPairsReceive) {
  start_all(4);
  EXPECT_EQ(fabric_->endpoints.size(), 1u) << "one pair until the driver asks for more";
  EXPECT_EQ(command({{4, 0, 3, 0}}), 0);
  EXPECT_EQ(fabric_->endpoints.size(), 3u) << "done before the driver sees the answer";
  EXPECT_EQ(command({{4}, {0}, {1}, {0}}), 0);
  EXPECT_EQ(fabric_->endpoints.size(), 1u);
  EXPECT_EQ(command({{4, 0}, {4, 0}}), 0);
  EXPECT_EQ(fabric_->endpoints.size(), 4u);
  stop_all();
}

TEST_F(ControlQueueTest, RefusesWhatIsWrongAndGoesOn) {
  start_all(2);
  EXPECT_EQ(command({{4, 0, 0, 0}}), 1) << "no pair at all";
  EXPECT_EQ(command({{4, 0, 3, 0}}), 1) << "more than there are";
  EXPECT_EQ(command({{4, 0, 1}}), 1) << "short";
  EXPECT_EQ(command({{4}}), 1) << "shorter than a header";
  EXPECT_EQ(command({{4, 1, 1, 0}}), 1) << "RSS was not offered";
  EXPECT_EQ(command({{0, 3, 1}}), 1) << "CTRL_RX_EXTRA was not negotiated";
  EXPECT_EQ(command({{0, 0, 2}}), 1) << "neither on nor off";
  EXPECT_EQ(command({{0, 0}}), 1) << "short";
  EXPECT_EQ(command({{2, 0, 0, 0x10}}), 1) << "VLAN 4096";
  EXPECT_EQ(command({{1, 0, 1, 0, 0, 0, 2, 2, 2}}), 1) << "a table that is cut short";
  EXPECT_EQ(command({{1, 0, 0xff, 0xff, 0xff, 0xff}}), 1) << "a table longer than any";
  EXPECT_EQ(command({{1, 0, 0, 0, 0, 0}}), 1) << "one table instead of two";
  EXPECT_EQ(command({{9, 9, 9}}), 1);
  EXPECT_EQ(command({{1, 1, 0x53, 0, 0, 0, 0, 1}}), 1) << "multicast";
  EXPECT_EQ(fabric_->endpoints.size(), 1u);
  EXPECT_EQ(command({{4, 0, 2, 0}}), 0);
  EXPECT_EQ(fabric_->endpoints.size(), 2u);
  stop_all();
}

TEST_F(ControlQueueTest, SetsTheAddressAndTakesAnAcknowledgement) {
  start_all(2);
  EXPECT_EQ(command({{1, 1, 0x52, 0x54, 0, 9, 8, 7}}), 0);
  const Bytes expected{0x52, 0x54, 0, 9, 8, 7};
  EXPECT_EQ(std::memcmp(config_space().mac, expected.data(), 6), 0);
  EXPECT_EQ(command({{3, 0}}), 0);
  for (unsigned i = 0; i < rings_.size(); ++i) stop(i);
  device_->set_features(features);
  EXPECT_EQ(std::memcmp(config_space().mac, Bytes(6).data(), 6), 0) << "the next driver's own";
  close();
}

TEST_F(ControlQueueTest, TheDriverChoosesWhatItReceives) {
  start_all(2);
  for (unsigned i = 0; i < 8; ++i) rings_[0]->post({256});
  const Bytes own{0x52, 0x54, 0, 9, 8, 7}, other{0x52, 0x54, 0, 1, 1, 1};
  const auto got = [&](const Bytes& to) {
    deliver(to);
    return rings_[0]->take_used().has_value();
  };
  EXPECT_TRUE(got(other)) << "a device begins promiscuous";
  EXPECT_EQ(command({{1, 1}, own}), 0);
  EXPECT_EQ(command({{0, 0, 0}}), 0);
  EXPECT_TRUE(got(own));
  EXPECT_FALSE(got(other));
  EXPECT_EQ(command({{1, 0}, {1, 0, 0, 0}, other, {0, 0, 0, 0}}), 0);
  EXPECT_TRUE(got(other));
  EXPECT_EQ(command({{1, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}), 0);
  EXPECT_FALSE(got(other));
  EXPECT_EQ(command({{2, 0, 7, 0}}), 0);
  EXPECT_EQ(command({{2, 1, 7, 0}}), 0);
  EXPECT_EQ(command({{0, 0, 1}}), 0);
  EXPECT_TRUE(got(other)) << "promiscuous again";
  stop_all();
}

TEST_F(ControlQueueTest, WithoutMultiqueueItIsTheThirdQueue) {
  constexpr std::uint64_t bits = vf::version_1 | nf::ctrl_vq | nf::ctrl_mac_addr;
  make({.name = "a", .pairs = 2, .control_queue = true});
  device_->set_features(bits);
  rings_.push_back(std::make_unique<GuestRing>(bits, 16));
  start(2, *rings_[0], true);
  EXPECT_EQ(command({{1, 1, 0x52, 0x54, 0, 9, 8, 7}}), 0);
  EXPECT_EQ(command({{4, 0, 2, 0}}), 1) << "MQ was not negotiated";
  device_->set_features(0);  // a running queue stays what it is
  EXPECT_EQ(command({{1, 1, 0x52, 0x54, 0, 9, 8, 6}}), 0);
  EXPECT_EQ(device_->status().pairs[1].rx_packets, 0u);
  stop(2);
  close();
}

TEST_F(ControlQueueTest, WithoutTheFeatureThereIsNoSuchQueue) {
  make({.name = "a", .pairs = 2, .control_queue = true});
  device_->set_features(vf::version_1);
  GuestRing ring{vf::version_1, 16};
  std::optional<bool> started;
  device_->start_queue(ring.start(4, true),
                       [&](base::Result<void> result) { started = result.has_value(); });
  ASSERT_TRUE(until([&] { return started.has_value(); }));
  EXPECT_FALSE(*started);
  close();
}

TEST_F(ControlQueueTest, AStoppedPairStaysOutWhateverTheDriverAsks) {
  start_all(2);
  EXPECT_EQ(command({{4, 0, 2, 0}}), 0);
  EXPECT_EQ(fabric_->endpoints.size(), 2u);
  stop(2);
  EXPECT_EQ(fabric_->endpoints.size(), 1u);
  EXPECT_EQ(command({{4, 0, 1, 0}}), 0);
  EXPECT_EQ(command({{4, 0, 2, 0}}), 0);
  EXPECT_EQ(fabric_->endpoints.size(), 1u);
  stop_all();
}

}  // namespace
}  // namespace millrace::net

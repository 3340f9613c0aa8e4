#include "vmm/device_shape.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <span>

#include "vhost/wire.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/blk.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::vmm {
namespace {

namespace bf = virtio::wire::blk_feature;
namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
using virtio::wire::BlkConfig, virtio::wire::NetConfig;

template <class T>
std::vector<std::byte> bytes_of(const T& value, std::size_t size = sizeof(T)) {
  const auto bytes = std::as_bytes(std::span{&value, 1}).first(size);
  return {bytes.begin(), bytes.end()};
}

template <class T>
T config_of(const DeviceShape& shape) {
  T config{};
  std::memcpy(&config, shape.config.data(), std::min(sizeof config, shape.config.size()));
  return config;
}

BackendOffer net_offer(std::uint16_t pairs, std::uint64_t queues) {
  NetConfig config{};
  config.max_virtqueue_pairs = base::le16{pairs};
  config.mtu = base::le16{9000};
  return {.features =
              vf::version_1 | vf::ring_packed | nf::ctrl_vq | nf::mq | nf::mtu | nf::guest_announce,
          .queues = queues,
          .config = bytes_of(config)};
}

BackendOffer blk_offer(std::uint16_t queues) {
  BlkConfig config{};
  config.num_queues = base::le16{queues};
  config.capacity = base::le64{2048};
  return {.features = vf::version_1 | bf::mq | bf::flush,
          .queues = queues,
          .config = bytes_of(config, virtio::wire::blk_config_size)};
}

constexpr ShapeOptions net{.kind = DeviceKind::net, .mac = {}, .queues = 0};
constexpr ShapeOptions blk{.kind = DeviceKind::blk, .mac = {}, .queues = 0};

TEST(DeviceShape, PassesADiskThrough) {
  const auto shape = shape_of(blk_offer(4), blk);
  ASSERT_TRUE(shape.has_value());
  EXPECT_EQ(shape->queues, 4u);
  EXPECT_EQ(shape->features, vf::version_1 | bf::mq | bf::flush);
  EXPECT_EQ(config_of<BlkConfig>(*shape).capacity.host(), 2048u);
  EXPECT_EQ(shape->config.size(), 60u);
}

TEST(DeviceShape, ShowsFewerQueuesWhereAskedFor) {
  auto options = blk;
  options.queues = 2;
  const auto shape = shape_of(blk_offer(4), options);
  ASSERT_TRUE(shape.has_value());
  EXPECT_EQ(shape->queues, 2u);
  EXPECT_EQ(config_of<BlkConfig>(*shape).num_queues.host(), 2);
  options.queues = 5;
  const auto refused = shape_of(blk_offer(4), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().message,
            "5 queues are asked for, but the back-end has 4: ask for fewer, or give it more");
}

TEST(DeviceShape, ControlQueueComesLast) {
  auto shape = shape_of(net_offer(4, 9), net);
  ASSERT_TRUE(shape.has_value());
  EXPECT_EQ(shape->queues, 9u);
  EXPECT_EQ(shape->vring_of(8, nf::mq), 8u);
  EXPECT_EQ(shape->vring_of(2, 0), 2u);
  auto options = net;
  options.queues = 2;
  shape = shape_of(net_offer(4, 9), options);
  ASSERT_TRUE(shape.has_value());
  EXPECT_EQ(shape->queues, 5u);
  EXPECT_EQ(config_of<NetConfig>(*shape).max_virtqueue_pairs.host(), 2);
  EXPECT_EQ(shape->vring_of(4, nf::mq), 8u) << "the back-end counts its own pairs";
  EXPECT_EQ(shape->vring_of(3, nf::mq), 3u);
  EXPECT_EQ(shape->vring_of(2, 0), 2u);
}

TEST(DeviceShape, OneAddressForBothEnds) {
  auto offer = net_offer(1, 3);
  NetConfig config{};
  std::memcpy(&config, offer.config.data(), sizeof config);
  config.mac[5] = 7;
  std::memcpy(offer.config.data(), &config, sizeof config);
  auto options = net;
  options.mac = {0, 0, 0, 0, 0, 7};
  offer.features |= nf::mac;
  EXPECT_TRUE(shape_of(offer, options).has_value());
  options.mac = {0, 0, 0, 0, 0, 8};
  EXPECT_FALSE(shape_of(offer, options).has_value());
  offer.features &= ~nf::mac;
  EXPECT_TRUE(shape_of(offer, options).has_value());
}

TEST(DeviceShape, WithoutControlQueueOnePair) {
  auto offer = net_offer(4, 8);
  offer.features &= ~nf::ctrl_vq;
  const auto shape = shape_of(offer, net);
  ASSERT_TRUE(shape.has_value());
  EXPECT_EQ(shape->queues, 2u);
  EXPECT_EQ(shape->features & (nf::mq | nf::guest_announce), 0u);
}

TEST(DeviceShape, MakesAConfigurationWhereThereIsNone) {
  auto offer = net_offer(1, 2);
  offer.config.clear();
  auto options = net;
  options.mac = {2, 0, 0, 0, 0, 7};
  const auto shape = shape_of(offer, options);
  ASSERT_TRUE(shape.has_value());
  const auto config = config_of<NetConfig>(*shape);
  EXPECT_EQ(config.mac[5], 7);
  EXPECT_EQ(config.status.host(), virtio::wire::net_status_link_up);
  EXPECT_EQ(shape->features & (nf::mac | nf::mtu | nf::mq), nf::mac);
  offer = blk_offer(1);
  offer.config.clear();
  EXPECT_FALSE(shape_of(offer, blk).has_value());
}

TEST(DeviceShape, HidesWhatCannotBeCarried) {
  auto offer = blk_offer(1);
  offer.features |= vf::access_platform | 1ull << 38 | vf::log_all | vf::protocol_features |
                    vf::any_layout | 1ull << 41 | bf::zoned;
  const auto shape = shape_of(offer, blk);
  ASSERT_TRUE(shape.has_value());
  EXPECT_EQ(shape->features, vf::version_1 | bf::mq | bf::flush);
}

TEST(DeviceShape, TellsADiskFromANic) {
  auto refused = shape_of(blk_offer(2), net);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().message, "this is the socket of a disk, not of a NIC");
  auto offer = net_offer(1, 3);
  offer.protocol = vhost::wire::protocol::rarp;
  refused = shape_of(offer, blk);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().message, "this is the socket of a NIC, not of a disk");
  offer.features |= nf::csum | nf::host_tso4 | nf::host_tso6 | nf::host_ecn | nf::guest_csum |
                    nf::guest_tso4 | nf::guest_ecn;
  EXPECT_TRUE(shape_of(offer, net).has_value());
}

TEST(DeviceShape, RefusesNonsense) {
  auto offer = blk_offer(4);
  offer.features &= ~vf::version_1;
  EXPECT_FALSE(shape_of(offer, blk).has_value());
  offer = blk_offer(4);
  offer.queues = 3;
  EXPECT_FALSE(shape_of(offer, blk).has_value());
  EXPECT_FALSE(shape_of(blk_offer(0), blk).has_value());
  EXPECT_FALSE(shape_of(blk_offer(257), blk).has_value());
  EXPECT_FALSE(shape_of(net_offer(0, 9), net).has_value());
  EXPECT_FALSE(shape_of(net_offer(128, 257), net).has_value());
  EXPECT_FALSE(shape_of(net_offer(4, 3), net).has_value());
  EXPECT_TRUE(shape_of(net_offer(127, 255), net).has_value());
}

}  // namespace
}  // namespace millrace::vmm

#include "vmm/companion_shape.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <span>

#include "virtio/features.hpp"
#include "virtio/wire/balloon.hpp"
#include "virtio/wire/blk.hpp"
#include "virtio/wire/console.hpp"
#include "virtio/wire/mem.hpp"
#include "virtio/wire/net.hpp"
#include "vmm/options.hpp"

namespace millrace::vmm {
namespace {

namespace bf = virtio::wire::balloon_feature;
namespace cf = virtio::wire::console_feature;
namespace vf = virtio::feature;

template <class T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto bytes = std::as_bytes(std::span{&value, 1});
  return {bytes.begin(), bytes.end()};
}

base::Result<DeviceShape> shape(DeviceKind kind, const BackendOffer& offer) {
  return shape_of(offer, {.kind = kind, .mac = {}, .queues = 0});
}

BackendOffer console_offer(std::uint32_t ports, std::uint64_t queues) {
  virtio::wire::ConsoleConfig config{};
  config.max_nr_ports = base::le32{ports};
  return {.features = vf::version_1 | cf::multiport | cf::emerg_write,
          .queues = queues,
          .config = bytes_of(config)};
}

TEST(CompanionShape, AnEntropyDeviceHasOneQueueAndNoConfiguration) {
  const auto made = shape(DeviceKind::rng,
                          {.features = vf::version_1 | vf::ring_packed, .queues = 1, .config = {}});
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->features, vf::version_1 | vf::ring_packed);
  EXPECT_EQ(made->queues, 1u);
  EXPECT_TRUE(made->config.empty());
  EXPECT_EQ(config_size_of(DeviceKind::rng), 0u);
}

TEST(CompanionShape, AConsoleHasTwoQueuesAPortAndTwoMore) {
  const auto made = shape(DeviceKind::console, console_offer(8, 18));
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->queues, 18u);
  EXPECT_EQ(made->features, vf::version_1 | cf::multiport) << "nobody carries an emergency write";
  EXPECT_EQ(made->config.size(), 12u);
  auto single = console_offer(8, 2);
  single.features &= ~cf::multiport;
  EXPECT_EQ(shape(DeviceKind::console, single)->queues, 2u);
  EXPECT_FALSE(shape(DeviceKind::console, console_offer(8, 17))) << "queues that are not there";
  for (const std::uint32_t many : {32u, 0x7fff'ffffu, 0xffff'ffffu}) {
    EXPECT_FALSE(shape(DeviceKind::console, console_offer(many, 256))) << many;
  }
}

TEST(CompanionShape, ABalloonsQueuesAreThoseOfItsFeatures) {
  const virtio::wire::BalloonConfig config{};
  BackendOffer offer{.features = vf::version_1, .queues = 5, .config = bytes_of(config)};
  EXPECT_EQ(shape(DeviceKind::balloon, offer)->queues, 2u);
  offer.features |= bf::stats_vq | bf::page_reporting | bf::deflate_on_oom | bf::page_poison;
  const auto made = shape(DeviceKind::balloon, offer);
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->queues, 4u);
  EXPECT_EQ(made->features & bf::page_poison, 0u) << "its value would have to be carried";
  offer.queues = 3;
  EXPECT_FALSE(shape(DeviceKind::balloon, offer));
  offer.config.clear();
  EXPECT_FALSE(shape(DeviceKind::balloon, offer));
}

TEST(CompanionShape, AMemoryDeviceHasOneQueueAndNoDomain) {
  namespace mf = virtio::wire::mem_feature;
  virtio::wire::MemConfig config{};
  config.requested_size = base::le64{1 << 30};
  BackendOffer offer{.features = vf::version_1 | mf::acpi_pxm | mf::unplugged_inaccessible,
                     .queues = 1,
                     .config = bytes_of(config)};
  const auto made = shape(DeviceKind::mem, offer);
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->queues, 1u);
  EXPECT_EQ(made->features, vf::version_1 | mf::unplugged_inaccessible);
  EXPECT_EQ(made->config, offer.config);
  EXPECT_FALSE(writable_field(DeviceKind::mem, ~0ull));
  offer.config.clear();
  EXPECT_FALSE(shape(DeviceKind::mem, offer));
}

TEST(CompanionShape, AnotherKindsSocketIsRefused) {
  namespace blk = virtio::wire::blk_feature;
  namespace net = virtio::wire::net_feature;
  const std::vector<std::byte> config(64);
  for (const auto kind :
       {DeviceKind::rng, DeviceKind::console, DeviceKind::balloon, DeviceKind::mem}) {
    EXPECT_FALSE(shape(
        kind,
        {.features = vf::version_1 | blk::blk_size | blk::seg_max, .queues = 8, .config = config}));
    EXPECT_FALSE(shape(
        kind, {.features = vf::version_1 | net::csum | net::mq, .queues = 8, .config = config}));
    EXPECT_FALSE(shape(kind, {.features = 0, .queues = 8, .config = config}));
  }
  EXPECT_FALSE(shape(DeviceKind::rng, console_offer(1, 4)));
}

TEST(CompanionShape, ADriverWritesABalloonsSizeAndADisksMode) {
  const auto balloon = writable_field(DeviceKind::balloon, 0);
  ASSERT_TRUE(balloon);
  EXPECT_EQ(balloon->offset, 4u);
  EXPECT_EQ(balloon->size, 4u);
  EXPECT_TRUE(writable_field(DeviceKind::blk, virtio::wire::blk_feature::config_wce));
  EXPECT_FALSE(writable_field(DeviceKind::blk, 0));
  EXPECT_FALSE(writable_field(DeviceKind::rng, ~0ull));
  EXPECT_FALSE(writable_field(DeviceKind::net, ~0ull));
}

TEST(CompanionShape, OptionsOfACompanion) {
  const auto parsed = parse_device(DeviceOption::Kind::balloon, "socket=/b,wait=no");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(parsed->kind, DeviceOption::Kind::balloon);
  EXPECT_EQ(parsed->queue_size, 64u);
  EXPECT_FALSE(parsed->wait);
  for (const char* const wrong : {"socket=/b,queues=2", "socket=/b,mac=52:54:00:00:00:01", ""}) {
    const auto refused = parse_device(DeviceOption::Kind::virtio_console, wrong);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().message.rfind("--virtio-console ", 0), 0u);
  }
}

TEST(CompanionShape, OptionsOfAMemoryDevice) {
  const auto parsed = parse_device(DeviceOption::Kind::virtio_mem, "socket=/m,size=4G");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(parsed->size, 4ull << 30);
  for (const char* const wrong : {"socket=/m", "socket=/m,size=0", "socket=/m,size=lots",
                                  "socket=/m,size=1G,removable=yes", "size=1G"}) {
    const auto refused = parse_device(DeviceOption::Kind::virtio_mem, wrong);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().message.rfind("--virtio-mem ", 0), 0u);
  }
  EXPECT_FALSE(parse_device(DeviceOption::Kind::balloon, "socket=/b,size=1G"));
}

}  // namespace
}  // namespace millrace::vmm

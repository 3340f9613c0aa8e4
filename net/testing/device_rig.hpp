// A network device on real reactors behind a fake switch, and one whose control queue a test
// drives.
#pragma once

#include <gtest/gtest.h>

#include <chrono>

#include "base/event_loop.hpp"
#include "net/device.hpp"
#include "net/testing/fakes.hpp"
#include "net/testing/guest_ring.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net::testing {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;

class NetDeviceTest : public ::testing::Test {
 protected:
  NetDeviceTest() {
    std::vector<base::ReactorConfig> configs(2);
    configs[1].index = 1;
    pool_ = std::move(base::ReactorPool::make(loop_, configs).value());
    fabric_ = std::make_unique<FakeFabric>(loop_, 2);
  }
  ~NetDeviceTest() override {
    device_.reset();
    pool_.reset();
  }

  // Turns the loop until `condition` holds; false after a long time.
  template <class Condition>
  [[nodiscard]] bool until(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{10};
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      loop_.step(std::chrono::milliseconds{1});
    }
    return true;
  }
  Device& make(const Config& config) {
    bool ready = false;
    auto made = Device::make(config, *pool_, *fabric_, [&ready] { ready = true; });
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    device_ = std::move(made.value());
    EXPECT_TRUE(until([&] { return ready; }));
    return *device_;
  }
  static std::string error_of(const Config& config, base::ReactorPool& pool,
                              vswitch::Fabric& fabric) {
    auto made = Device::make(config, pool, fabric, [] {});
    return made ? "" : made.error().message;
  }
  void start(unsigned index, GuestRing& ring, bool enabled) {
    bool done = false;
    device_->start_queue(ring.start(index, enabled), [&done](base::Result<void> result) {
      EXPECT_TRUE(result) << (result ? "" : result.error().message);
      done = true;
    });
    ASSERT_TRUE(until([&] { return done; }));
  }
  void enable(unsigned index, bool enabled) {
    bool done = false;
    device_->enable_queue(index, enabled, [&done](base::Result<void>) { done = true; });
    ASSERT_TRUE(until([&] { return done; }));
  }
  void stop(unsigned index) {
    bool done = false;
    device_->stop_queue(index, [&done](std::uint32_t) { done = true; });
    ASSERT_TRUE(until([&] { return done; }));
  }
  void close() {
    bool done = false;
    device_->close([&done] { done = true; });
    ASSERT_TRUE(until([&] { return done; }));
    EXPECT_EQ(fabric_->ports, 0);
  }
  [[nodiscard]] virtio::wire::NetConfig config_space() const {
    virtio::wire::NetConfig space{};
    const auto bytes = device_->config();
    EXPECT_EQ(bytes.size(), sizeof(space));
    std::memcpy(&space, bytes.data(), sizeof(space));
    return space;
  }
  [[nodiscard]] std::size_t forwarded() const {
    return fabric_->bridges[0].count.load() + fabric_->bridges[1].count.load();
  }

  base::EventLoop loop_;
  std::unique_ptr<base::ReactorPool> pool_;
  std::unique_ptr<FakeFabric> fabric_;
  std::unique_ptr<Device> device_;
};

class ControlQueueTest : public NetDeviceTest {
 protected:
  static constexpr std::uint64_t features = vf::version_1 | nf::mrg_rxbuf | nf::mq | nf::ctrl_vq |
                                            nf::ctrl_mac_addr | nf::guest_announce | nf::ctrl_rx |
                                            nf::ctrl_vlan;

  // `more`: features beside those.
  void start_all(unsigned pairs, std::uint64_t more = 0) {
    make({.name = "a", .pairs = pairs, .control_queue = true, .hash_report = true});
    EXPECT_EQ(device_->features() & (features | more), features | more);
    device_->set_features(features | more);
    start_queues(pairs, features | more);
  }
  void start_queues(unsigned pairs, std::uint64_t bits) {
    rings_.clear();
    for (unsigned i = 0; i <= 2 * pairs; ++i) {
      rings_.push_back(std::make_unique<GuestRing>(bits, 16));
      start(i, *rings_[i], true);
    }
  }
  void stop_all() {
    for (unsigned i = 0; i < rings_.size(); ++i) stop(i);
    EXPECT_TRUE(fabric_->endpoints.empty());
    close();
  }
  // Sends a command and returns the acknowledgement.
  int command(std::vector<Bytes> readable) {
    GuestRing& ring = *rings_.back();
    ring.send(std::move(readable), {1});
    ring.kick();
    std::optional<GuestRing::Done> done;
    EXPECT_TRUE(until([&] { return (done = ring.take_used()).has_value(); }));
    if (!done || done->bytes.size() != 1) return -1;
    return done->bytes[0];
  }

  // The switch has a frame to that address for the first pair.
  void deliver(const Bytes& to) {
    auto packet = std::make_shared<vswitch::Packet>();
    packet->header.fill(std::byte{0});
    packet->header_size = 60, packet->length = 60;
    std::memcpy(packet->header.data(), to.data(), to.size());
    deliver(0, std::move(packet));
  }
  // To the endpoint of that pair.
  void deliver(unsigned pair, std::shared_ptr<const vswitch::Packet> packet) {
    const auto endpoint = fabric_->endpoints.at(pair);
    bool done = false;
    pool_->post(
        endpoint.reactor,
        [endpoint, packet = std::move(packet)](base::Reactor&) noexcept {
          const vswitch::Packet* one = packet.get();
          endpoint.port->deliver({&one, 1});
        },
        [&done] { done = true; });
    EXPECT_TRUE(until([&] { return done; }));
  }

  std::vector<std::unique_ptr<GuestRing>> rings_;
};

}  // namespace millrace::net::testing

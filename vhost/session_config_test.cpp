// Configuration space, our own requests, net's messages and the inflight region.
#include <gtest/gtest.h>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::FakeDevice;
using testing::Harness;
using wire::Request;
namespace p = wire::protocol;
namespace f = virtio::feature;

TEST(SessionConfig, AnswersWhatWasAskedFilledWithZeros) {
  Harness h;
  h.negotiate();
  const auto all = h.frontend.get_config(0, 64);
  ASSERT_TRUE(all);
  EXPECT_EQ(*all, h.device.config_bytes);
  const auto more = h.frontend.get_config(0, 256);
  ASSERT_TRUE(more);
  EXPECT_TRUE(
      std::equal(h.device.config_bytes.begin(), h.device.config_bytes.end(), more->begin()));
  EXPECT_TRUE(
      std::all_of(more->begin() + 64, more->end(), [](std::byte b) { return b == std::byte{0}; }));
  const auto part = h.frontend.get_config(60, 8);
  ASSERT_TRUE(part);
  EXPECT_EQ((*part)[3], std::byte{64});
  EXPECT_EQ((*part)[4], std::byte{0});
  EXPECT_TRUE(h.frontend.get_config(200, 8));
  EXPECT_TRUE(h.frontend.get_config(~0u, 4096));
  EXPECT_TRUE(h.frontend.get_config(0, 0));
}

TEST(SessionConfig, OffsetsThatCountFromTheMmioLayout) {
  Harness h;
  h.negotiate();
  const auto all = h.frontend.get_config(0x100, 64);
  ASSERT_TRUE(all);
  EXPECT_EQ(*all, h.device.config_bytes);
  const std::byte on{1};
  EXPECT_TRUE(h.frontend.set_config(0x100 + FakeDevice::writable_offset, {&on, 1}));
  EXPECT_EQ(h.device.written, std::vector<std::byte>{on});
  // A configuration space that reaches so far means what it says.
  h.device.config_bytes.resize(0x120, std::byte{0x55});
  const auto far = h.frontend.get_config(0x100, 1);
  ASSERT_TRUE(far);
  EXPECT_EQ((*far)[0], std::byte{0x55});
}

TEST(SessionConfig, AMalformedQuestionGetsAnEmptyAnswer) {
  Harness h;
  h.negotiate();
  const wire::ConfigHeader header{.offset = 0, .size = 8, .flags = 0};
  ASSERT_TRUE(h.frontend.send(Request::get_config, bytes_of(header)));
  const auto answer = h.frontend.receive();
  ASSERT_TRUE(answer);
  EXPECT_TRUE(answer->payload.empty());
  EXPECT_FALSE(h.frontend.request(Request::set_config, bytes_of(header)));
  EXPECT_TRUE(h.frontend.set_owner());
}

TEST(SessionConfig, AWriteThatTheDeviceRefusesDoesNotEndTheSession) {
  Harness h;
  h.negotiate();
  const std::byte on{1};
  EXPECT_TRUE(h.frontend.set_config(FakeDevice::writable_offset, {&on, 1}));
  EXPECT_FALSE(h.frontend.set_config(0, {&on, 1}));
  h.frontend.set_acknowledged(false);
  EXPECT_TRUE(h.frontend.set_config(0, {&on, 1}));
  EXPECT_TRUE(h.frontend.get_features());
  EXPECT_FALSE(h.ended);
}

TEST(SessionConfig, AChangeIsTold) {
  Harness h;
  h.negotiate(p::reply_ack);
  auto [ours, theirs] = testing::make_sockets();
  ASSERT_TRUE(h.frontend.set_backend_req_fd(theirs.get()));
  h.settle();
  Frontend listener{std::move(ours)};
  listener.set_pump([&] { h.turn(); });
  for (int i = 0; i < 3; ++i) {
    h.device.config_hook();
    const auto told = listener.receive();
    ASSERT_TRUE(told);
    EXPECT_EQ(told->header.request, 2u);
    EXPECT_EQ(told->header.flags, wire::version);
    EXPECT_EQ(told->header.size, 0u);
  }
}

TEST(SessionConfig, AChangeIsNoBusinessOfWhoLeftTheConfigurationSpace) {
  Harness h;
  h.negotiate(p::reply_ack | p::config);
  auto [ours, theirs] = testing::make_sockets();
  ASSERT_TRUE(h.frontend.set_backend_req_fd(theirs.get()));
  h.settle();
  Frontend listener{std::move(ours)};
  h.device.config_hook();
  h.settle();
  listener.set_timeout(std::chrono::milliseconds{20});
  EXPECT_FALSE(listener.receive());
}

TEST(SessionConfig, ChangesWaitForTheReplyToTheOneBefore) {
  Harness h;
  h.negotiate();
  auto [ours, theirs] = testing::make_sockets();
  ASSERT_TRUE(h.frontend.set_backend_req_fd(theirs.get()));
  Frontend listener{std::move(ours)};
  listener.set_pump([&] { h.turn(); });
  for (int i = 0; i < 100; ++i) h.device.config_hook();
  const auto reply = [&] {
    const auto told = listener.receive();
    ASSERT_TRUE(told);
    EXPECT_EQ(told->header.flags, wire::version | wire::flag_need_reply);
    ASSERT_TRUE(listener.send(static_cast<Request>(2), bytes_of(std::uint64_t{0}), {},
                              wire::version | wire::flag_reply));
    h.settle();
  };
  reply();
  reply();
  listener.set_timeout(std::chrono::milliseconds{20});
  EXPECT_FALSE(listener.receive());
}

TEST(SessionConfig, ABackendChannelThatMisbehavesOnlyLosesItself) {
  Harness h;
  h.negotiate();
  auto [ours, theirs] = testing::make_sockets();
  ASSERT_TRUE(h.frontend.set_backend_req_fd(theirs.get()));
  Frontend listener{std::move(ours)};
  ASSERT_TRUE(listener.send(static_cast<Request>(2), bytes_of(std::uint64_t{0})));
  h.settle();
  h.device.config_hook();
  listener.hang_up();
  h.settle();
  h.device.config_hook();
  EXPECT_TRUE(h.frontend.set_owner());
  EXPECT_FALSE(h.frontend.set_backend_req_fd(h.kick.get()));
}

TEST(SessionConfig, NetMessagesReachTheDevice) {
  Harness h{virtio::DeviceKind::net};
  h.negotiate();
  const std::array<std::uint8_t, 6> mac{1, 2, 3, 4, 5, 6};
  EXPECT_TRUE(h.frontend.send_rarp(mac));
  EXPECT_TRUE(h.called("announce 1..6"));
  EXPECT_TRUE(h.frontend.net_set_mtu(68));
  EXPECT_TRUE(h.frontend.net_set_mtu(65535));
  EXPECT_TRUE(h.called("mtu 65535"));
  EXPECT_FALSE(h.frontend.net_set_mtu(67));
  EXPECT_FALSE(h.frontend.net_set_mtu(65536));
  EXPECT_FALSE(h.frontend.net_set_mtu(0x100000000ull + 1500));
}

TEST(SessionInflight, TheRegionIsMadeSealedAndTakenBack) {
  for (const bool packed : {false, true}) {
    Harness h;
    h.negotiate();
    if (packed) {
      ASSERT_TRUE(h.frontend.set_features(h.features | f::ring_packed));
    }
    auto region = h.frontend.get_inflight_fd(4, 256);
    ASSERT_TRUE(region);
    EXPECT_EQ(region->shape.queues, 4);
    EXPECT_EQ(region->shape.queue_size, 256);
    EXPECT_EQ(region->shape.offset, 0u);
    EXPECT_GE(region->shape.size, virtio::InflightRegion::size_for(4, 256, packed));
    EXPECT_NE(::fcntl(region->fd.get(), F_GET_SEALS) & F_SEAL_SHRINK, 0);
    ASSERT_TRUE(h.frontend.set_inflight_fd(region->shape, region->fd.get()));
    h.give_memory();
    h.start_ring(0);
    EXPECT_NE(h.device.started[0].start.inflight, nullptr);
  }
}

// QEMU asks for its device's queue-size and tells the guest a larger one.
TEST(SessionInflight, HasRoomForALargerRingThanAskedFor) {
  for (const bool packed : {false, true}) {
    Harness h;
    h.negotiate();
    if (packed) {
      ASSERT_TRUE(h.frontend.set_features(h.features | f::ring_packed));
    }
    auto shape = h.frontend.get_inflight_fd(4, 128);
    ASSERT_TRUE(shape);
    EXPECT_EQ(shape->shape.queue_size, 128);
    ASSERT_TRUE(h.frontend.set_inflight_fd(shape->shape, shape->fd.get()));
    h.give_memory();
    h.start_ring(0);
    const auto& region = *h.device.started[0].start.inflight;
    EXPECT_TRUE(packed ? region.packed(3, 1024) != nullptr : region.split(3, 1024) != nullptr);
  }
}

// Made by another backend, or described by a front-end with a size of its own.
TEST(SessionInflight, IsLaidOutAsAskedWhereItIsNotOurs) {
  Harness h;
  h.negotiate();
  auto made = h.frontend.get_inflight_fd(4, 128);
  ASSERT_TRUE(made);
  auto shape = made->shape;
  shape.size = virtio::InflightRegion::size_for(4, 128, false);
  ASSERT_TRUE(h.frontend.set_inflight_fd(shape, made->fd.get()));
  h.give_memory();
  h.start_ring(0);
  const auto& region = *h.device.started[0].start.inflight;
  EXPECT_EQ(region.queue_size(), 128u);
  EXPECT_EQ(region.split(0, 1024), nullptr);
}

TEST(SessionInflight, IsNotThereUntilItWasSet) {
  Harness h;
  h.negotiate();
  ASSERT_TRUE(h.frontend.get_inflight_fd(4, 256));
  h.give_memory();
  h.start_ring(0);
  EXPECT_EQ(h.device.started[0].start.inflight, nullptr);
}

TEST(SessionInflight, TheDescriptionMayComeWithoutItsPadding) {
  Harness h;
  h.negotiate();
  wire::Inflight shape{};
  shape.queues = 1;
  shape.queue_size = 64;
  const auto payload = bytes_of(shape).first(wire::inflight_size_min);
  auto answer = h.frontend.ask(Request::get_inflight_fd, payload, payload.size());
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->fds.size(), 1u);
  const std::array<int, 1> fds{answer->fds[0].get()};
  EXPECT_TRUE(h.frontend.request(Request::set_inflight_fd, answer->payload, fds));
}

TEST(SessionInflight, RefusesWrongShapes) {
  Harness h;
  h.negotiate();
  auto region = h.frontend.get_inflight_fd(2, 1024);
  ASSERT_TRUE(region);
  const auto change = [&](auto edit) {
    auto shape = region->shape;
    edit(shape);
    return h.frontend.set_inflight_fd(shape, region->fd.get()).has_value();
  };
  EXPECT_FALSE(change([](auto& s) { s.queues = 0; }));
  EXPECT_FALSE(change([](auto& s) { s.queues = 5; }));
  EXPECT_FALSE(change([](auto& s) { s.queues = 4; }));  // would need more bytes
  EXPECT_FALSE(change([](auto& s) { s.queue_size = 0; }));
  EXPECT_FALSE(change([](auto& s) { s.queue_size = 0xffff; }));
  EXPECT_FALSE(change([](auto& s) { s.size = 8; }));
  EXPECT_FALSE(change([](auto& s) { s.size = 1 << 20; }));
  EXPECT_FALSE(change([](auto& s) { s.offset = ~0ull - 4; }));
  EXPECT_FALSE(h.frontend.set_inflight_fd(region->shape, h.kick.get()));
  EXPECT_TRUE(change([](auto&) {}));
  EXPECT_FALSE(h.frontend.get_inflight_fd(5, 64));
}

TEST(SessionInflight, AskingAgainAndAgainKeepsNothing) {
  Harness h;
  h.negotiate();
  const auto before = testing::open_fds();
  for (int i = 0; i < 50; ++i) {
    auto region = h.frontend.get_inflight_fd(4, 1024);
    ASSERT_TRUE(region);
    ASSERT_TRUE(h.frontend.set_inflight_fd(region->shape, region->fd.get()));
  }
  EXPECT_EQ(testing::open_fds(), before);
}

}  // namespace
}  // namespace millrace::vhost

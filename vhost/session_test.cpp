// Negotiation, replies, status and reset.
#include <gtest/gtest.h>

#include <numeric>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::Harness;
using wire::Request;
namespace p = wire::protocol;
namespace f = virtio::feature;

TEST(Session, OffersDeviceFeaturesAndTheProtocolsOwn) {
  Harness h;
  const auto features = h.frontend.get_features();
  ASSERT_TRUE(features);
  EXPECT_EQ(*features, h.device.offered | f::log_all | f::protocol_features);
}

TEST(Session, OffersProtocolFeaturesByDeviceKind) {
  constexpr auto both = p::mq | p::log_shmfd | p::reply_ack | p::backend_req | p::backend_send_fd |
                        p::inflight_shmfd | p::reset_device | p::configure_mem_slots | p::status;
  Harness blk{virtio::DeviceKind::blk};
  EXPECT_EQ(*blk.frontend.get_protocol_features(), both | p::config);
  Harness net{virtio::DeviceKind::net};
  net.device.offers_config_space = false;
  EXPECT_EQ(*net.frontend.get_protocol_features(), both | p::rarp | p::mtu);
  net.device.offers_config_space = true;
  EXPECT_EQ(*net.frontend.get_protocol_features(), both | p::rarp | p::mtu | p::config);
}

TEST(Session, RefusesFeaturesThatWereNotOffered) {
  Harness h;
  h.negotiate();
  EXPECT_FALSE(h.frontend.set_features(1ull << 63));
  EXPECT_FALSE(h.frontend.request(Request::set_protocol_features, bytes_of(1ull << 40)));
  EXPECT_FALSE(h.ended);
}

TEST(Session, TellsTheDeviceItsOwnBitsOnly) {
  Harness h;
  h.negotiate();
  EXPECT_EQ(h.device.negotiated, h.features & ~(f::log_all | f::protocol_features));
  EXPECT_EQ(h.session->features(), h.features);
  EXPECT_TRUE(h.device.connected);
}

TEST(Session, ForgetsTheFeaturesOfTheSessionBefore) {
  Harness h;
  h.negotiate();
  h.frontend.hang_up();
  h.settle();
  ASSERT_TRUE(h.ended);
  h.connect();
  EXPECT_EQ(h.device.negotiated, 0u);
}

TEST(Session, ToleratesMessagesBeforeSetOwner) {
  Harness h;
  ASSERT_TRUE(h.frontend.get_features());
  ASSERT_TRUE(h.frontend.set_protocol_features(p::mq | p::reply_ack));
  EXPECT_TRUE(h.frontend.get_queue_num());
  EXPECT_TRUE(h.frontend.set_owner());
}

TEST(Session, CountsVirtqueuesForNetAndBlk) {
  for (const auto kind : {virtio::DeviceKind::net, virtio::DeviceKind::blk}) {
    Harness h{kind, 6};
    h.negotiate();
    EXPECT_EQ(*h.frontend.get_queue_num(), 6u);
  }
}

TEST(Session, AcknowledgesOnlyWhatAsksAndOnlyWhenNegotiated) {
  Harness h;
  ASSERT_TRUE(h.frontend.set_protocol_features(p::mq));
  // The flag without the feature is no reason to answer: the next reply is GET_FEATURES's.
  ASSERT_TRUE(h.frontend.send(Request::set_owner, {}, {}, wire::version | wire::flag_need_reply));
  ASSERT_TRUE(h.frontend.get_features());
  ASSERT_TRUE(h.frontend.set_protocol_features(p::reply_ack));
  ASSERT_TRUE(h.frontend.send(Request::set_owner, {}));
  ASSERT_TRUE(h.frontend.get_features());
  ASSERT_TRUE(h.frontend.set_owner());
}

TEST(Session, AMessageWithAReplyOfItsOwnIsNotAcknowledgedTwice) {
  Harness h;
  h.negotiate();
  constexpr auto flags = wire::version | wire::flag_need_reply;
  ASSERT_TRUE(h.frontend.send(Request::get_features, {}, {}, flags));
  const auto answer = h.frontend.receive();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->header.request, static_cast<std::uint32_t>(Request::get_features));
  EXPECT_TRUE(h.frontend.set_owner());
}

TEST(Session, AnAcknowledgedFailureKeepsTheSession) {
  Harness h;
  h.negotiate();
  EXPECT_FALSE(h.frontend.set_vring_num(99, 256));
  EXPECT_EQ(h.session->counters().refused, 1u);
  EXPECT_TRUE(h.frontend.set_vring_num(0, 256));
  EXPECT_FALSE(h.ended);
}

TEST(Session, AFailureWithoutAcknowledgementEndsTheSessionWithItsReason) {
  Harness h;
  h.negotiate(p::reply_ack);
  ASSERT_TRUE(h.frontend.set_vring_num(99, 256));
  h.settle();
  EXPECT_TRUE(h.ended);
  EXPECT_NE(h.session->reason().find("SET_VRING_NUM"), std::string::npos);
  EXPECT_EQ(h.session->phase(), Session::Phase::ended);
}

TEST(Session, AFailedQuestionEndsTheSession) {
  Harness h;
  h.negotiate(p::mq);
  EXPECT_FALSE(h.frontend.get_queue_num());
  h.settle();
  EXPECT_TRUE(h.ended);
}

TEST(Session, AnUnknownMessageIsRefused) {
  Harness h;
  h.negotiate();
  for (const std::uint32_t request : {0u, 22u, 23u, 28u, 35u, 255u, ~0u}) {
    EXPECT_FALSE(h.frontend.request(static_cast<Request>(request), {})) << request;
  }
  EXPECT_TRUE(h.frontend.set_owner());
}

struct Gate {
  Request request;
  std::uint64_t bit;
  std::size_t payload;
  bool fd;
};

TEST(Session, RefusesEachMessageWhoseFeatureWasNotAcknowledged) {
  constexpr Gate gates[] = {
      {Request::get_queue_num, p::mq, 0, false},
      {Request::set_log_base, p::log_shmfd, 16, true},
      {Request::send_rarp, p::rarp, 8, false},
      {Request::net_set_mtu, p::mtu, 8, false},
      {Request::set_backend_req_fd, p::backend_req, 0, true},
      {Request::get_config, p::config, 12, false},
      {Request::set_config, p::config, 12, false},
      {Request::get_inflight_fd, p::inflight_shmfd, 24, false},
      {Request::set_inflight_fd, p::inflight_shmfd, 24, true},
      {Request::reset_device, p::reset_device, 0, false},
      {Request::get_max_mem_slots, p::configure_mem_slots, 0, false},
      {Request::add_mem_reg, p::configure_mem_slots, 40, true},
      {Request::rem_mem_reg, p::configure_mem_slots, 40, false},
      {Request::set_status, p::status, 8, false},
      {Request::get_status, p::status, 0, false},
  };
  for (const auto& gate : gates) {
    Harness h{virtio::DeviceKind::net};
    h.device.offered |= 1ull << 17;
    h.negotiate(gate.bit | p::reply_ack);
    const std::vector<std::byte> payload(gate.payload);
    const std::array<int, 1> fds{h.kick.get()};
    ASSERT_TRUE(h.frontend.send(gate.request, payload, std::span{fds}.first(gate.fd ? 1 : 0)));
    h.settle();
    EXPECT_TRUE(h.ended) << static_cast<unsigned>(gate.request);
    EXPECT_NE(h.session->reason().find("not acknowledged"), std::string::npos);
  }
}

TEST(Session, ChecksTheSizeAndDescriptorsOfEachMessage) {
  const auto fd = testing::make_event();
  const std::array<int, 2> fds{fd.get(), fd.get()};
  for (std::uint32_t request = 1; request <= 40; ++request) {
    for (const std::size_t size : {1u, 7u, 9u, 13u, 39u, 41u, 100u, 8104u}) {
      Harness h;
      h.negotiate(p::reply_ack);
      const std::vector<std::byte> payload(size, std::byte{0xff});
      ASSERT_TRUE(h.frontend.send(static_cast<Request>(request), payload));
      // GET_CONFIG says no with an empty reply.
      const bool config = request == static_cast<std::uint32_t>(Request::get_config);
      h.settle();
      EXPECT_TRUE(h.ended || config) << request << " with " << size << " bytes";
    }
    Harness h;
    h.negotiate(p::reply_ack);
    const std::vector<std::byte> payload(8);
    ASSERT_TRUE(h.frontend.send(static_cast<Request>(request), payload, fds));
    h.settle();
    EXPECT_TRUE(h.ended) << request << " with surplus descriptors";
  }
}

TEST(Session, KeepsTheStatusByte) {
  Harness h;
  h.negotiate();
  EXPECT_EQ(*h.frontend.get_status(), 0u);
  EXPECT_TRUE(h.frontend.set_status(0xf));
  EXPECT_EQ(*h.frontend.get_status(), 0xfu);
  EXPECT_FALSE(h.frontend.request(Request::set_status, bytes_of(std::uint64_t{256})));
  EXPECT_EQ(*h.frontend.get_status(), 0xfu);
}

TEST(Session, AFaultedQueueShowsInTheStatus) {
  Harness h;
  h.negotiate();
  ASSERT_TRUE(h.frontend.set_status(0xf));
  h.device.fault_hook(0, virtio::Fault::chain_loop);
  EXPECT_EQ(*h.frontend.get_status(), 0x4fu);
}

TEST(Session, EachKindOfResetStopsTheRingsAndKeepsTheSession) {
  for (int kind = 0; kind < 3; ++kind) {
    Harness h;
    h.negotiate();
    h.give_memory();
    h.start_ring(0);
    h.start_ring(1);
    ASSERT_EQ(h.session->phase(), Session::Phase::running);
    h.device.started[1].position = 42;
    const auto reset = kind == 0   ? h.frontend.reset_device()
                       : kind == 1 ? h.frontend.reset_owner()
                                   : h.frontend.set_status(0);
    EXPECT_TRUE(reset);
    EXPECT_TRUE(h.device.started.empty());
    EXPECT_EQ(h.session->phase(), Session::Phase::negotiating);
    EXPECT_EQ(h.session->memory().count(), 1u);
    EXPECT_EQ(*h.frontend.get_vring_base(1), 42u);  // asked after the reset by QEMU 7.2
    h.start_ring(0);
    EXPECT_EQ(h.device.started.count(0), 1u);
    EXPECT_TRUE(h.device.started[0].start.call.valid());
  }
}

TEST(Session, HandlesNoOtherMessageWhileTheDeviceOwesAnAnswer) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  h.device.hold = true;
  ASSERT_TRUE(h.frontend.send(Request::get_vring_base, bytes_of(wire::VringState{0, 0})));
  ASSERT_TRUE(h.frontend.send(Request::get_features, {}));
  h.settle();
  const auto handled = h.session->counters().messages;
  ASSERT_EQ(h.device.held(), 1u);
  h.settle();
  EXPECT_EQ(h.session->counters().messages, handled);
  h.device.started[0].position = 7;
  ASSERT_TRUE(h.device.answer_one());
  auto first = h.frontend.receive();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->header.request, static_cast<std::uint32_t>(Request::get_vring_base));
  auto second = h.frontend.receive();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->header.request, static_cast<std::uint32_t>(Request::get_features));
}

TEST(Session, AHangUpStopsEveryRingBeforeMemoryIsLetGo) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  h.start_ring(3);
  const std::weak_ptr<const virtio::GuestMemory> memory = h.session->memory().snapshot();
  h.device.hold = true;
  h.frontend.hang_up();
  h.settle();
  EXPECT_EQ(h.session->phase(), Session::Phase::draining);
  EXPECT_FALSE(memory.expired());
  ASSERT_TRUE(h.device.answer_one());
  h.settle();
  EXPECT_FALSE(h.ended);
  EXPECT_FALSE(memory.expired());
  ASSERT_TRUE(h.device.answer_one());
  h.settle();
  EXPECT_TRUE(h.ended);
  EXPECT_TRUE(memory.expired());
  EXPECT_TRUE(h.device.started.empty());
  EXPECT_FALSE(h.device.connected);
  EXPECT_EQ(h.session->reason(), "");
}

TEST(Session, AHangUpWhileTheDeviceOwesAnAnswerWaitsForIt) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.set_up_ring(0);
  h.device.hold = true;
  ASSERT_TRUE(h.frontend.send(Request::set_vring_enable, bytes_of(wire::VringState{0, 1})));
  h.settle();
  ASSERT_EQ(h.device.held(), 1u);
  h.frontend.hang_up();
  h.settle();
  EXPECT_FALSE(h.called("stop 0"));
  h.device.hold = false;
  ASSERT_TRUE(h.device.answer_one());
  h.settle();
  EXPECT_TRUE(h.called("stop 0"));
  EXPECT_TRUE(h.ended);
}

}  // namespace
}  // namespace millrace::vhost

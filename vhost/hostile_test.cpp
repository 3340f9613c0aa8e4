// A front-end that means harm: after each script the descriptors are back to what they were, and
// the next front-end is served.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::Harness;
using testing::make_event;
using testing::make_memory;
using testing::open_fds;
using testing::ring_at;
using wire::Request;
namespace p = wire::protocol;

void expect_served(Harness& h) {
  h.frontend.hang_up();
  h.settle();
  ASSERT_TRUE(h.ended);
  h.connect();
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  EXPECT_EQ(h.device.started.size(), 1u);
}

TEST(Hostile, HeadersThatAreNoHeaders) {
  Harness h;
  for (const wire::Header header : {
           wire::Header{.request = 1, .flags = 1, .size = 0xffffffff},
           wire::Header{.request = 1, .flags = 1, .size = wire::payload_max + 1},
           wire::Header{.request = 1, .flags = 0, .size = 0},
           wire::Header{.request = 1, .flags = 2, .size = 0},
           wire::Header{.request = 1, .flags = 3, .size = 0},
           wire::Header{.request = 1, .flags = 1 | wire::flag_reply, .size = 0},
       }) {
    ASSERT_TRUE(h.frontend.send_bytes(bytes_of(header)));
    h.settle();
    EXPECT_TRUE(h.ended) << header.flags;
    EXPECT_NE(h.session->reason(), "");
    h.connect();
  }
}

TEST(Hostile, ReservedFlagBitsAreNobodysBusiness) {
  Harness h;
  ASSERT_TRUE(h.frontend.send(Request::get_features, {}, {}, 1u | 0xfffffff0u));
  EXPECT_TRUE(h.frontend.receive());
}

TEST(Hostile, AMessageShortByOneByteNeverRuns) {
  Harness h;
  h.negotiate();
  const wire::Header header{
      .request = static_cast<std::uint32_t>(Request::set_status), .flags = 1, .size = 8};
  ASSERT_TRUE(h.frontend.send_bytes(bytes_of(header)));
  ASSERT_TRUE(h.frontend.send_bytes(std::vector<std::byte>(7)));
  h.settle();
  EXPECT_FALSE(h.ended);
  h.frontend.hang_up();
  h.settle();
  EXPECT_TRUE(h.ended);
}

TEST(Hostile, AWholeSetUpByteByByte) {
  Harness h;
  h.negotiate();
  h.give_memory();
  const auto trickle = [&](Request request, std::span<const std::byte> payload, int fd) {
    const wire::Header header{.request = static_cast<std::uint32_t>(request),
                              .flags = wire::version,
                              .size = static_cast<std::uint32_t>(payload.size())};
    const auto head = bytes_of(header);
    std::vector<std::byte> bytes{head.begin(), head.end()};
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const std::array<int, 1> fds{fd};
      const bool with_fd = fd >= 0 && i == 0;
      ASSERT_TRUE(h.frontend.send_bytes({&bytes[i], 1}, std::span{fds}.first(with_fd ? 1 : 0)));
      h.turn();
    }
  };
  trickle(Request::set_vring_num, bytes_of(wire::VringState{0, 256}), -1);
  trickle(Request::set_vring_addr, bytes_of(ring_at(0, Harness::user_base)), -1);
  trickle(Request::set_vring_kick, bytes_of(std::uint64_t{0}), h.kick.get());
  h.settle();
  EXPECT_EQ(h.device.started.count(0), 1u);
}

TEST(Hostile, SurplusDescriptorsOnEveryMessageAreClosed) {
  const auto event = make_event();
  for (const std::size_t count : {1u, 8u, 9u, 253u}) {
    Harness h;
    h.negotiate();
    const auto before = open_fds();
    const std::vector<int> fds(count, event.get());
    for (std::uint32_t request = 0; request <= 45; ++request) {
      const std::array<std::byte, 8> payload{};
      ASSERT_TRUE(h.frontend.send(static_cast<Request>(request), payload, fds,
                                  wire::version | wire::flag_need_reply));
      h.settle();
      // The question that cannot say no ends the session.
      if (h.ended) {
        h.frontend.hang_up();
        h.connect();
        h.negotiate();
      }
    }
    h.frontend.hang_up();
    h.settle();
    h.connect();
    EXPECT_EQ(open_fds(), before) << count;
  }
}

TEST(Hostile, AFloodOfQuestionsIsNotAnsweredIntoMemory) {
  Harness h;
  h.negotiate();
  // Until the socket takes no more: nobody reads the answers.
  h.frontend.set_timeout(std::chrono::milliseconds{50});
  unsigned sent = 0;
  while (sent < 100'000 && h.frontend.send(Request::get_features, {})) ++sent;
  ASSERT_LT(sent, 100'000u);
  EXPECT_LT(h.session->counters().messages, sent + 4);
  EXPECT_FALSE(h.ended);
  // It stalled only itself: the answers are still there, each once. The last question was cut off.
  h.frontend.set_timeout(std::chrono::milliseconds{2000});
  for (unsigned i = 0; i < sent; ++i) ASSERT_TRUE(h.frontend.receive()) << i;
  expect_served(h);
}

TEST(Hostile, MessagesInEveryWrongOrder) {
  Harness h;
  h.negotiate();
  EXPECT_TRUE(h.frontend.set_vring_enable(0, true));
  EXPECT_TRUE(h.frontend.set_vring_addr(ring_at(0, ~0ull - 64)));  // before memory
  EXPECT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
  EXPECT_EQ(*h.frontend.get_vring_base(0), 0u);
  EXPECT_EQ(*h.frontend.get_vring_base(0), 0u);
  EXPECT_TRUE(h.frontend.set_vring_enable(0, false));
  EXPECT_TRUE(h.frontend.reset_owner());
  EXPECT_TRUE(h.frontend.reset_device());
  h.give_memory();
  h.start_ring(0);
  h.give_memory();  // while running
  const auto rem = Frontend::Region{
      .guest_address = 0, .size = Harness::memory_size, .user_address = Harness::user_base};
  EXPECT_TRUE(h.frontend.rem_mem_reg(rem));  // in use
  EXPECT_EQ(h.session->memory().count(), 0u);
  expect_served(h);
}

TEST(Hostile, TheSameMemoryForEverything) {
  Harness h;
  h.negotiate();
  h.give_memory();
  auto shape = h.frontend.get_inflight_fd(2, 64);
  ASSERT_TRUE(shape);
  EXPECT_TRUE(h.frontend.set_log_base(Harness::memory_size, 0, h.memory.get()));
  EXPECT_TRUE(h.frontend.set_inflight_fd(shape->shape, h.memory.get()));
  h.start_ring(0);
  expect_served(h);
}

TEST(Hostile, RepeatedMessagesKeepOneDescriptorEach) {
  Harness h;
  h.negotiate();
  h.give_memory();
  const auto bitmap = make_memory(1 << 16);
  auto [ours, theirs] = testing::make_sockets();
  const auto repeat = [&] {
    EXPECT_TRUE(h.frontend.set_vring_kick(1, h.kick.get()));
    EXPECT_TRUE(h.frontend.set_vring_call(1, h.kick.get()));
    EXPECT_TRUE(h.frontend.set_vring_err(1, h.kick.get()));
    EXPECT_TRUE(h.frontend.set_log_base(1 << 16, 0, bitmap.get()));
    EXPECT_TRUE(h.frontend.set_log_fd(h.kick.get()));
    EXPECT_TRUE(h.frontend.set_backend_req_fd(theirs.get()));
    const Frontend::Region one{
        .guest_address = 0, .size = 4096, .user_address = Harness::user_base, .fd = h.memory.get()};
    EXPECT_TRUE(h.frontend.set_mem_table({&one, 1}));
  };
  repeat();
  const auto before = open_fds();
  for (int i = 0; i < 20; ++i) repeat();
  EXPECT_EQ(open_fds(), before);
}

// Whatever comes, in any order, over and over: no crash, no leak, and the rings are stopped in the
// end.
TEST(Hostile, RandomMessages) {
  std::mt19937 random{20260101};
  const auto pick = [&](std::uint32_t below) {
    return static_cast<std::uint32_t>(random() % below);
  };
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  const base::Fd read_end{pipe[0]}, write_end{pipe[1]};
  const auto memory = make_memory(1 << 20), event = make_event();
  const std::array<int, 4> pool{memory.get(), event.get(), read_end.get(), write_end.get()};
  Harness h;
  h.frontend.hang_up();
  h.settle();
  const auto before = open_fds();
  for (int round = 0; round < 300; ++round) {
    h.connect();
    h.negotiate();
    h.give_memory();
    if (pick(2) == 0) h.start_ring(pick(4));
    for (int step = 0; step < 30 && !h.ended; ++step) {
      const auto request = static_cast<Request>(pick(42));
      std::vector<std::byte> payload(std::array{0u, 8u, 8u, 12u, 16u, 24u, 40u, 40u}[pick(8)]);
      for (auto& byte : payload) byte = std::byte(pick(3) == 0 ? pick(256) : 0);
      std::vector<int> fds(pick(3));
      for (auto& fd : fds) fd = pool[pick(4)];
      ASSERT_TRUE(h.frontend.send(request, payload, fds,
                                  wire::version | (pick(2) != 0 ? wire::flag_need_reply : 0u)));
      for (int i = 0; i < 6; ++i) h.turn();
    }
    h.frontend.hang_up();
    h.settle();
    ASSERT_TRUE(h.ended);
    EXPECT_TRUE(h.device.started.empty());
    h.memory.reset();
    ASSERT_EQ(open_fds(), before) << round;
  }
}

}  // namespace
}  // namespace millrace::vhost

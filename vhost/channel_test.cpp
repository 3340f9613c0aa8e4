// Framing: pieces, budgets, pauses.
#include "vhost/channel.hpp"

#include <gtest/gtest.h>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::make_event;
using testing::make_sockets;
using testing::open_fds;

struct ChannelTest : ::testing::Test, Channel::Owner {
  ChannelTest() { open(std::chrono::seconds{10}); }

  void open(std::chrono::milliseconds timeout) {
    auto [ours, theirs] = make_sockets();
    channel = std::make_unique<Channel>(loop, std::move(ours), *this, 4u, timeout);
    peer = std::make_unique<Frontend>(std::move(theirs));
    ASSERT_TRUE(channel->open());
  }
  void settle() {
    for (int i = 0; i < 40; ++i) loop.step(std::chrono::milliseconds{0});
  }
  base::Result<void> on_header(const wire::Header& header) override {
    if (header.size > 64) return base::fail("too long");
    return {};
  }
  void on_message(Message message) override {
    messages.push_back(std::move(message));
    if (pause_after_each) channel->pause();
  }
  void on_closed(const std::string& why) override {
    ++closed;
    reason = why;
  }
  base::Result<void> send(std::uint32_t request, std::size_t size, std::span<const int> fds = {}) {
    return peer->send(static_cast<wire::Request>(request), std::vector<std::byte>(size), fds);
  }

  base::EventLoop loop;
  std::unique_ptr<Channel> channel;
  std::unique_ptr<Frontend> peer;
  std::vector<Message> messages;
  bool pause_after_each = false;
  int closed = 0;
  std::string reason;
};

TEST_F(ChannelTest, DeliversWholeMessagesFromSingleBytes) {
  const auto event = make_event();
  std::vector<std::byte> stream;
  for (std::uint32_t i = 0; i < 3; ++i) {
    const wire::Header header{.request = i, .flags = 1, .size = i * 8};
    const auto head = bytes_of(header);
    stream.insert(stream.end(), head.begin(), head.end());
    stream.resize(stream.size() + header.size, std::byte(i));
  }
  for (std::size_t i = 0; i < stream.size(); ++i) {
    const std::array<int, 1> fds{event.get()};
    // A descriptor with the first byte of the second message.
    ASSERT_TRUE(peer->send_bytes({&stream[i], 1}, std::span{fds}.first(i == 12 ? 1 : 0)));
    settle();
  }
  ASSERT_EQ(messages.size(), 3u);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(messages[i].header.request, i);
    EXPECT_EQ(messages[i].payload, std::vector<std::byte>(i * 8, std::byte(i)));
    EXPECT_EQ(messages[i].fds.size(), i == 1 ? 1u : 0u);
  }
  EXPECT_EQ(closed, 0);
}

TEST_F(ChannelTest, ManyMessagesInOneWriteComeOneByOne) {
  for (std::uint32_t i = 0; i < 100; ++i) ASSERT_TRUE(send(i, 8));
  settle();
  ASSERT_EQ(messages.size(), 100u);
  EXPECT_EQ(messages[99].header.request, 99u);
}

TEST_F(ChannelTest, APausedChannelKeepsTheRestInTheSocket) {
  pause_after_each = true;
  for (std::uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(send(i, 0));
  settle();
  EXPECT_EQ(messages.size(), 1u);
  channel->resume();
  settle();
  EXPECT_EQ(messages.size(), 2u);
}

TEST_F(ChannelTest, SeesAHangUpWhilePaused) {
  pause_after_each = true;
  ASSERT_TRUE(send(1, 0));
  settle();
  peer->hang_up();
  settle();
  EXPECT_EQ(closed, 1);
}

TEST_F(ChannelTest, AHangUpBetweenMessagesHasNoReason) {
  ASSERT_TRUE(send(1, 8));
  peer->hang_up();
  settle();
  EXPECT_EQ(messages.size(), 1u);
  EXPECT_EQ(closed, 1);
  EXPECT_EQ(reason, "");
}

TEST_F(ChannelTest, AHangUpInsideAMessageHasOne) {
  const wire::Header header{.request = 1, .flags = 1, .size = 8};
  ASSERT_TRUE(peer->send_bytes(bytes_of(header)));
  peer->hang_up();
  settle();
  EXPECT_TRUE(messages.empty());
  EXPECT_EQ(closed, 1);
  EXPECT_NE(reason, "");
}

TEST_F(ChannelTest, AHalfClosedPeerIsGone) {
  ASSERT_EQ(::shutdown(peer->fd(), SHUT_WR), 0);
  settle();
  EXPECT_EQ(closed, 1);
}

TEST_F(ChannelTest, TheOwnersLimitEndsItBeforeThePayload) {
  ASSERT_TRUE(send(1, 65));
  settle();
  EXPECT_EQ(closed, 1);
  EXPECT_EQ(reason, "too long");
  EXPECT_TRUE(messages.empty());
}

TEST_F(ChannelTest, SurplusDescriptorsAreClosed) {
  const auto event = make_event();
  for (const std::size_t count : {5u, 8u, 253u}) {
    open(std::chrono::seconds{10});
    closed = 0;
    const auto before = open_fds();
    const std::vector<int> fds(count, event.get());
    ASSERT_TRUE(send(1, 8, fds));
    settle();
    EXPECT_EQ(closed, 1) << count;
    EXPECT_EQ(open_fds(), before) << count;
  }
}

TEST_F(ChannelTest, DescriptorsAreCountedOverAllPiecesOfAMessage) {
  const auto event = make_event();
  const std::array<int, 3> fds{event.get(), event.get(), event.get()};
  const auto before = open_fds();
  const wire::Header header{.request = 1, .flags = 1, .size = 8};
  ASSERT_TRUE(peer->send_bytes(bytes_of(header), fds));
  ASSERT_TRUE(peer->send_bytes(bytes_of(std::uint32_t{0}), fds));
  settle();
  EXPECT_EQ(closed, 1);
  EXPECT_EQ(open_fds(), before);
}

TEST_F(ChannelTest, AnIncompleteMessageRunsOutOfTime) {
  open(std::chrono::milliseconds{5});
  ASSERT_TRUE(peer->send_bytes(std::array{std::byte{1}}));
  for (int i = 0; i < 100 && closed == 0; ++i) loop.step(std::chrono::milliseconds{10});
  EXPECT_EQ(closed, 1);
  EXPECT_EQ(reason, "a message stayed incomplete");
}

TEST_F(ChannelTest, ACompleteMessageStopsTheClock) {
  open(std::chrono::milliseconds{5});
  const wire::Header header{.request = 1, .flags = 1, .size = 0};
  ASSERT_TRUE(peer->send_bytes(bytes_of(header).first(5)));
  loop.step(std::chrono::milliseconds{0});
  ASSERT_TRUE(peer->send_bytes(bytes_of(header).subspan(5)));
  for (int i = 0; i < 4; ++i) loop.step(std::chrono::milliseconds{3});
  EXPECT_EQ(closed, 0);
  EXPECT_EQ(messages.size(), 1u);
}

TEST_F(ChannelTest, WhatThePeerDoesNotReadWaitsAndStopsTheReading) {
  const wire::Header header{.request = 9, .flags = 5, .size = 4000};
  const std::vector<std::byte> payload(4000, std::byte{7});
  const int small = 4096;
  ASSERT_EQ(::setsockopt(channel->socket().get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
  // Until the socket is full and one reply waits.
  unsigned sent = 0;
  while (closed == 0 && sent < 1000) {
    channel->send(header, payload);
    ++sent;
    struct pollfd one {
      .fd = channel->socket().get(), .events = POLLOUT, .revents = 0
    };
    if (::poll(&one, 1, 0) == 0) break;
  }
  ASSERT_LT(sent, 1000u);
  ASSERT_TRUE(send(1, 0));
  settle();
  const auto early = messages.size();
  peer->set_pump([&] { loop.step(std::chrono::milliseconds{0}); });
  for (unsigned i = 0; i < sent; ++i) {
    const auto got = peer->receive();
    ASSERT_TRUE(got) << i << " of " << sent;
    EXPECT_EQ(got->payload, payload);
  }
  settle();
  EXPECT_LE(early, 1u);
  EXPECT_EQ(messages.size(), 1u);
  EXPECT_EQ(closed, 0);
}

TEST_F(ChannelTest, APeerThatNeverReadsIsGivenUp) {
  const wire::Header header{.request = 9, .flags = 5, .size = 4000};
  const std::vector<std::byte> payload(4000);
  for (int i = 0; i < 10000 && closed == 0; ++i) channel->send(header, payload);
  EXPECT_EQ(closed, 1);
  EXPECT_EQ(reason, "does not read its replies");
}

TEST_F(ChannelTest, ADescriptorTravelsWithItsMessage) {
  const auto event = make_event();
  const auto before = open_fds();
  channel->send({.request = 1, .flags = 5, .size = 0}, {}, event.get());
  const auto got = peer->receive();
  ASSERT_TRUE(got);
  ASSERT_EQ(got->fds.size(), 1u);
  EXPECT_EQ(base::kind_of(got->fds[0]), base::FdKind::eventfd);
  EXPECT_EQ(open_fds(), before + 1);
}

}  // namespace
}  // namespace millrace::vhost

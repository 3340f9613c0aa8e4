#include "switch/gro.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "switch/gso.hpp"
#include "switch/testing/frames.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

constexpr std::uint8_t data = 0x10, push = 0x18, finish = 0x11;

// Frames that come in one burst, and what becomes of them.
class GroTest : public ::testing::Test {
 protected:
  // As on the wire: with a right checksum.
  void comes(const Bytes& frame, bool verified = true, bool whole = true) {
    frames_.push_back(std::make_unique<Bytes>(frame));
    Packet& packet = packets_->at(count_);
    testing::describe(*frames_.back(), packet);
    packet.offload.checksum_verified = verified;
    places_.at(count_++) =
        whole ? reinterpret_cast<const std::byte*>(frames_.back()->data()) : nullptr;
  }
  static Bytes right(const Shape& shape) {
    Bytes frame = make_frame(shape);
    const std::size_t field = shape.l2() + shape.l3() + (shape.udp ? 6 : 16);
    set16(frame, field, oracle_checksum(frame, shape.l2() + shape.l3(), frame.size()));
    return frame;
  }
  void comes(const Shape& shape) { comes(right(shape)); }
  // Frames of one flow, each after the one before.
  void stream(Shape shape, unsigned frames, unsigned last) {
    for (unsigned i = 0; i < frames; ++i) {
      const bool ends = i + 1 == frames;
      if (ends) shape.payload = last;
      shape.tcp_flags = ends ? push : data;
      comes(shape);
      shape.sequence += shape.payload;
      ++shape.ip_id;
    }
  }
  std::span<Packet> join() {
    return {packets_->data(), gro_.join({packets_->data(), count_}, {places_.data(), count_})};
  }
  // The frames that a receiver without large packets gets of it.
  static std::vector<Bytes> frames_of(Packet& packet) {
    EXPECT_TRUE(validate_offload(packet));
    std::vector<Bytes> out;
    const auto add = [&out](const Packet& one) {
      Bytes frame = contents(one);
      if (one.offload.checksum_needed) {
        set16(frame, one.offload.checksum_start + one.offload.checksum_offset,
              complete_checksum(one));
      }
      out.push_back(frame);
    };
    if (packet.offload.gso == Gso::none) {
      add(packet);
      return out;
    }
    Segmenter segmenter{packet};
    const auto segment = std::make_unique<Packet>();
    while (segmenter.next(*segment)) add(*segment);
    return out;
  }
  // All that came is there, in its order, and is `packets` packets.
  void expect(std::size_t packets) {
    const auto left = join();
    EXPECT_EQ(left.size(), packets);
    std::vector<Bytes> out;
    for (Packet& packet : left) {
      for (auto& frame : frames_of(packet)) out.push_back(std::move(frame));
    }
    ASSERT_EQ(out.size(), frames_.size());
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], *frames_[i]) << "frame " << i;
    again();
  }
  void again() {
    count_ = 0;
    frames_.clear();
  }

  std::unique_ptr<std::array<Packet, burst_max>> packets_ =
      std::make_unique<std::array<Packet, burst_max>>();
  std::array<Gro::Place, burst_max> places_{};
  std::vector<std::unique_ptr<Bytes>> frames_;
  std::size_t count_ = 0;
  Gro gro_;
};

TEST_F(GroTest, AStreamIsOnePacketAndTheSameFramesAgain) {
  for (const bool ipv6 : {false, true}) {
    for (const unsigned tags : {0u, 1u, 2u}) {
      for (const unsigned options : {0u, 12u, 40u}) {
        for (const unsigned payload : {1u, 5u, 60u, 100u, 536u, 1448u}) {
          for (const unsigned frames : {2u, 3u, 32u}) {
            for (const unsigned last : {payload, (payload + 1) / 2}) {
              SCOPED_TRACE(::testing::Message() << "ipv6 " << ipv6 << " tags " << tags
                                                << " options " << options << " frames " << frames
                                                << " of " << payload << ", the last of " << last);
              const Shape shape{.ipv6 = ipv6,
                                .tags = tags,
                                .tcp_options = options,
                                .payload = payload,
                                .sequence = 0xffff'ff00,
                                .ip_id = 0xfffe};
              stream(shape, frames, last);
              expect(1);
            }
          }
        }
      }
    }
  }
}

TEST_F(GroTest, TheWholeIsWhatAGuestWouldSend) {
  const Shape shape{.payload = 1448};
  stream(shape, 10, 500);
  const auto left = join();
  ASSERT_EQ(left.size(), 1u);
  Packet& whole = left.front();
  EXPECT_EQ(whole.length, shape.headers() + 9 * 1448 + 500);
  EXPECT_EQ(whole.offload.gso, Gso::tcp4);
  EXPECT_EQ(whole.offload.gso_size, 1448);
  EXPECT_FALSE(whole.offload.checksum_verified);
  const Bytes bytes = contents(whole);
  EXPECT_EQ(get16(bytes, shape.l2() + 2), whole.length - shape.l2());
  EXPECT_EQ(oracle_checksum(bytes, shape.l2(), shape.l2() + shape.l3()), 0u);
  EXPECT_EQ(bytes[shape.l2() + shape.l3() + 13], push);
  ASSERT_TRUE(validate_offload(whole));
  const Bytes ready = frames_of(whole).front();
  EXPECT_EQ(oracle_checksum(ready, shape.l2() + shape.l3(), ready.size(), pseudo_sum(ready, shape)),
            0u);
}

TEST_F(GroTest, AShorterFrameOrAPushEndsIt) {
  Shape shape{.payload = 1000, .tcp_flags = data};
  const auto next = [&](unsigned payload, std::uint8_t flags) {
    shape.payload = payload;
    shape.tcp_flags = flags;
    comes(shape);
    shape.sequence += payload;
    ++shape.ip_id;
  };
  next(1000, data), next(999, data), next(1000, data), next(1000, data);
  expect(2);
  next(1000, data), next(1000, push), next(1000, data), next(1000, data);
  expect(2);
  next(1000, push), next(1000, data);
  expect(2);
  next(1000, data), next(1001, data), next(1001, data);
  expect(2);
}

TEST_F(GroTest, WhatDiffersIsNotJoined) {
  const Shape first{.payload = 1000, .tcp_flags = data};
  Shape second = first;
  second.sequence += 1000;
  ++second.ip_id;
  const auto refused = [&](const char* what, const Bytes& frame, bool verified = true,
                           bool whole = true) {
    SCOPED_TRACE(what);
    comes(first);
    comes(frame, verified, whole);
    expect(2);
  };
  const auto changed = [&](std::size_t at, unsigned by) {
    Bytes frame = right(second);
    frame[at] = static_cast<std::uint8_t>(frame[at] ^ by);
    if (at >= second.l2() && at < second.l2() + second.l3()) {  // of the IP header
      set16(frame, second.l2() + 10, 0);
      set16(frame, second.l2() + 10,
            oracle_checksum(frame, second.l2(), second.l2() + second.l3()));
    }
    return frame;
  };
  const std::size_t l3 = second.l2(), l4 = l3 + second.l3();
  refused("receiver", changed(5, 1));
  refused("sender", changed(11, 1));
  refused("type of service", changed(l3 + 1, 1));
  refused("id", changed(l3 + 5, 3));
  refused("may be a fragment", changed(l3 + 6, 0x40));
  refused("is a fragment", changed(l3 + 6, 0x20));
  refused("time to live", changed(l3 + 8, 1));
  refused("address", changed(l3 + 15, 1));
  refused("port", changed(l4 + 1, 1));
  refused("sequence", changed(l4 + 7, 1));
  refused("acknowledgement", changed(l4 + 11, 1));
  refused("reserved bits", changed(l4 + 12, 1));
  for (const unsigned flag : {0x01u, 0x02u, 0x04u, 0x10u, 0x20u, 0x40u, 0x80u}) {
    refused("flags", changed(l4 + 13, flag));
  }
  refused("window", changed(l4 + 15, 1));
  refused("urgent pointer", changed(l4 + 19, 1));
  Bytes wrong = right(second);
  wrong[l3 + 11] ^= 1;
  refused("a wrong checksum of IP", wrong);
  refused("nobody checked it", right(second), false);
  refused("in pieces", right(second), true, false);
  Bytes padded = right(second);
  padded.push_back(0);
  refused("longer than IP says", padded);
  Shape with = second;
  with.tcp_options = 4;
  refused("options", right(with));
  with = second;
  with.ip_options = 4;
  refused("options of IP", right(with));
  with = second;
  with.payload = 0;
  refused("no data", right(with));
  with = first;
  with.tcp_flags = finish;
  comes(with), comes(second);
  expect(2);
}

TEST_F(GroTest, OptionsHaveToBeTheSame) {
  Shape shape{.tcp_options = 12, .payload = 100, .tcp_flags = data};
  comes(shape);
  shape.sequence += 100, ++shape.ip_id;
  Bytes frame = right(shape);
  frame[shape.headers() - 1] = 7;
  comes(frame);
  expect(2);
}

// Flows that take turns are joined each, up to eight; nothing of a flow passes what it sent before.
TEST_F(GroTest, FlowsThatTakeTurns) {
  for (const unsigned flows : {2u, 8u, 10u}) {
    SCOPED_TRACE(flows);
    for (unsigned i = 0; i < 3; ++i) {
      for (unsigned flow = 0; flow < flows; ++flow) {
        Shape shape{
            .payload = 1000, .tcp_flags = data, .sequence = 1000 + i * 1000, .ip_id = 7 + i};
        Bytes frame = right(shape);
        set16(frame, shape.l2() + shape.l3(), 2000 + flow);
        comes(frame);
      }
    }
    const auto left = join();
    EXPECT_EQ(left.size(), flows <= 8 ? flows : 3 * flows);
    for (std::size_t i = 0; i < left.size(); ++i) {
      EXPECT_EQ(get16(contents(left[i]), 34), 2000 + i % flows);
      EXPECT_EQ(frames_of(left[i]).size(), flows <= 8 ? 3u : 1u);
    }
    again();
  }
  Shape shape{.payload = 1000, .tcp_flags = data};
  comes(shape);
  Shape acknowledges = shape;
  acknowledges.sequence += 1000, acknowledges.payload = 0, ++acknowledges.ip_id;
  comes(acknowledges);
  shape.sequence += 1000, shape.ip_id += 2;
  comes(shape);
  shape.sequence += 1000, ++shape.ip_id;
  comes(shape);
  expect(3);
}

// Bytes at random in streams: whatever becomes of them, the frames are those that came.
TEST_F(GroTest, NothingIsLostOrInvented) {
  std::mt19937 random{5};
  std::size_t joined = 0;
  for (unsigned round = 0; round < 4000; ++round) {
    Shape shape{.ipv6 = random() % 2 == 0,
                .tags = static_cast<unsigned>(random() % 3),
                .payload = static_cast<unsigned>(1 + random() % 300),
                .sequence = static_cast<std::uint32_t>(random())};
    std::vector<Bytes> sent;
    for (unsigned i = 0; i < 2 + random() % (burst_max - 1); ++i) {
      shape.tcp_flags = random() % 8 == 0 ? push : data;
      Bytes frame = right(shape);
      if (random() % 4 == 0) frame[random() % frame.size()] ^= static_cast<std::uint8_t>(random());
      sent.push_back(frame);
      comes(frame, false);
      // What a device finds right.
      const auto l4 = shape.l2() + shape.l3();
      packets_->at(count_ - 1).offload.checksum_verified =
          frame.size() > l4 &&
          oracle_checksum(frame, l4, frame.size(), pseudo_sum(frame, shape)) == 0;
      shape.sequence += shape.payload;
      ++shape.ip_id;
    }
    const auto left = join();
    joined += sent.size() - left.size();
    std::vector<Bytes> out;
    for (Packet& packet : left) {
      for (auto& frame : frames_of(packet)) out.push_back(std::move(frame));
    }
    ASSERT_EQ(out, sent) << "round " << round;
    again();
  }
  EXPECT_GT(joined, 4000u);
}

}  // namespace
}  // namespace millrace::vswitch

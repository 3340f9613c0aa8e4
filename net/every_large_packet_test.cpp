// Packets that are larger than a frame, of every kind of size, through the rings of two guests:
// whole where the receiver takes them, in segments with right checksums where it does not.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "net/testing/two_ends.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
namespace header_flag = virtio::wire::net_header_flag;
namespace header_gso = virtio::wire::net_gso;
using testing::Bytes;
using testing::FrameSpec;
using testing::Shape;
using testing::TwoEnds;
using testing::Ways;

constexpr std::size_t mss = 1448;

// What a receiver takes, by the least that it does itself.
enum class Takes { all, partial_checksums, nothing };

constexpr std::uint64_t sends_large = nf::csum | nf::host_tso4 | nf::host_tso6;

std::uint64_t features_of_receiver(Takes takes) {
  if (takes == Takes::nothing) return 0;
  const std::uint64_t large = nf::guest_tso4 | nf::guest_tso6;
  return nf::guest_csum | (takes == Takes::all ? large : 0);
}

// Payload bytes: a sample, and all edges of segments and of 16-bit lengths.
std::vector<std::size_t> large_payloads() {
  constexpr std::size_t headers = 54, most = 65'535;
  std::vector<std::size_t> out{most - headers - 1, most - headers, most - headers + 1, most - 40};
  for (const std::size_t segments : {1u, 2u, 3u, 22u, 44u, 45u}) {
    for (const int more : {-1, 0, 1}) out.push_back(segments * mss + std::size_t(more));
  }
  for (std::size_t payload = mss + 1; payload < most - headers; payload += 1511) {
    out.push_back(payload);
  }
  return out;
}

// Families in turns, but for what is too long with the longer header.
FrameSpec large_spec(std::size_t number, std::size_t payload) {
  const bool ipv6 = number % 2 != 0 && payload < 65'400;
  return {.ipv6 = ipv6,
          .gso = ipv6 ? vswitch::Gso::tcp6 : vswitch::Gso::tcp4,
          .payload = payload,
          .gso_size = mss};
}

Bytes large_frame(const FrameSpec& spec, std::size_t number) {
  static std::map<std::pair<bool, std::size_t>, Bytes> heads;
  const std::size_t headers = testing::headers_size(spec);
  Bytes& head = heads[{spec.ipv6, spec.payload}];
  if (head.empty()) {
    head = testing::make_frame(spec);
    head.resize(headers);
  }
  Bytes out = head;
  const auto payload = testing::pattern_of(number, spec.payload);
  out.insert(out.end(), payload.begin(), payload.end());
  return out;
}

// What is between the ends of one packet.
struct Passage {
  TwoEnds& ends;
  const FrameSpec spec;
  const Bytes frame;
  const Takes takes;

  [[nodiscard]] std::size_t headers() const { return testing::headers_size(spec); }
  void post(std::size_t number) {
    if (takes == Takes::all) return ends.post_for(frame.size(), number);
    for (std::size_t left = spec.payload; left > 0; left -= std::min(left, mss)) {
      ends.post_for(headers() + std::min(left, mss), number);
    }
  }
  void expect_whole() {
    const auto got = ends.next();
    const bool large = spec.payload > mss;
    const auto kind = spec.ipv6 ? header_gso::tcp6 : header_gso::tcp4;
    EXPECT_EQ(got.header.flags, header_flag::needs_csum);
    EXPECT_EQ(got.header.gso_type, large ? kind : header_gso::none);
    EXPECT_EQ(got.header.gso_size.host(), large ? mss : 0);
    EXPECT_EQ(got.header.csum_start.host(), 14 + testing::l3_size(spec));
    ASSERT_TRUE(testing::same(got.frame, frame));
  }
  void expect_segments() {
    for (std::size_t done = 0; done < spec.payload;) {
      const std::size_t size = std::min(mss, spec.payload - done);
      auto got = ends.next();
      ASSERT_EQ(got.frame.size(), headers() + size) << "segment at " << done;
      EXPECT_EQ(got.header.gso_type, header_gso::none);
      const bool partial = takes == Takes::partial_checksums;
      EXPECT_EQ(got.header.flags, partial ? header_flag::needs_csum : 0);
      if (partial) complete_sum(got.frame);
      EXPECT_TRUE(testing::checks_out(got.frame)) << "segment at " << done;
      const auto sent = frame.begin() + std::ptrdiff_t(headers() + done);
      ASSERT_TRUE(std::equal(got.frame.begin() + std::ptrdiff_t(headers()), got.frame.end(), sent))
          << "segment at " << done;
      done += size;
    }
  }
  // As the receiver's stack does.
  void complete_sum(Bytes& got) const {
    const std::size_t l4 = 14 + testing::l3_size(spec);
    const auto sum = static_cast<std::uint16_t>(~testing::ones_sum(got, l4, got.size()));
    testing::put16(got, l4 + 16, sum == 0 ? 0xffff : sum);
  }
};

class EveryLargePacket : public ::testing::TestWithParam<Ways> {};

void exchange_large(TwoEnds& ends, Takes takes) {
  std::size_t number = 0;
  for (const std::size_t payload : large_payloads()) {
    const FrameSpec spec = large_spec(++number, payload);
    Passage packet{ends, spec, large_frame(spec, number), takes};
    packet.post(number);
    ends.send(packet.frame,
              describe(testing::offload_of(spec), {true, true, true, true, true, true}));
    ends.run();
    if (takes == Takes::all) {
      packet.expect_whole();
    } else {
      packet.expect_segments();
    }
    ends.expect_all_settled(1);
    ASSERT_FALSE(::testing::Test::HasFailure()) << "payload of " << payload;
  }
  EXPECT_TRUE(ends.queues.receiving.all_came_back());
  ends.finish();
}

TEST_P(EveryLargePacket, ArrivesWholeOrInSegments) {
  for (const Takes takes : {Takes::all, Takes::partial_checksums, Takes::nothing}) {
    for (const Shape shape : testing::shapes_of(GetParam())) {
      TwoEnds ends{GetParam(), shape, sends_large, features_of_receiver(takes), 512};
      exchange_large(ends, takes);
      ASSERT_FALSE(HasFailure()) << "receiver " << static_cast<int>(takes) << ", shape "
                                 << static_cast<int>(shape);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, EveryLargePacket,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool(), ::testing::Bool(),
                                            ::testing::Values(true), ::testing::Bool(),
                                            ::testing::Bool(), ::testing::Bool()));

}  // namespace
}  // namespace millrace::net

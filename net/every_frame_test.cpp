// Every frame's bytes, from a guest's transmit ring through a switch into another guest's receive
// ring, in every way that the two rings can be: the loops for what is usual (a frame in one piece
// into a buffer in one piece) and those for everything else.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "net/testing/two_ends.hpp"

namespace millrace::net {
namespace {

namespace nf = virtio::wire::net_feature;
using testing::Bytes;
using testing::Cut;
using testing::Shape;
using testing::TwoEnds;
using testing::Ways;
using virtio::wire::NetHeader;

constexpr std::size_t frame_least = 60, frame_most = 9216;

// Frames of these sizes in bursts that no ring's size is a multiple of.
void exchange(TwoEnds& ends, Shape shape, const std::vector<std::size_t>& sizes) {
  const std::size_t most = shape == Shape::whole ? 29 : shape == Shape::pages ? 13 : 7;
  for (std::size_t done = 0; done < sizes.size();) {
    const std::size_t end = std::min(done + most, sizes.size());
    std::vector<Bytes> frames;
    for (std::size_t i = done; i < end; ++i) {
      frames.push_back(testing::numbered_frame(i, sizes[i]));
      ends.post_for(sizes[i], i);
      ends.send(frames.back());
    }
    ends.expect_usual(sizes[done]);
    ends.run();
    for (const Bytes& frame : frames) {
      const auto got = ends.next();
      EXPECT_EQ(got.header.flags, 0);
      EXPECT_EQ(got.header.gso_type, virtio::wire::net_gso::none);
      ASSERT_TRUE(testing::same(got.frame, frame)) << "frame of " << frame.size();
    }
    ends.expect_all_settled(frames.size());
    if (::testing::Test::HasFailure()) return;
    done = end;
  }
  EXPECT_TRUE(ends.queues.receiving.all_came_back());
  ends.finish();
}

// In no order, so that neighbours in a burst differ.
std::vector<std::size_t> sizes_by(std::size_t step) {
  std::vector<std::size_t> out{
      frame_least + 1, 127, 128, 129, 139, 140, 141, 1513, 1514, 1515, 3040, 3041, frame_most};
  for (std::size_t size = frame_least; size <= frame_most; size += step) out.push_back(size);
  std::shuffle(out.begin(), out.end(), std::mt19937{3});
  return out;
}

class EveryFrame : public ::testing::TestWithParam<Ways> {};
constexpr auto either = [] { return ::testing::Bool(); };
constexpr auto never = [] { return ::testing::Values(false); };
constexpr auto always = [] { return ::testing::Values(true); };

TEST_P(EveryFrame, OfManySizesArrivesWhole) {
  for (const Shape shape : testing::shapes_of(GetParam())) {
    TwoEnds ends{GetParam(), shape};
    exchange(ends, shape, sizes_by(61));
    ASSERT_FALSE(HasFailure()) << "shape " << static_cast<int>(shape);
  }
}

// The header with a hash has its own loops.
TEST_P(EveryFrame, BehindTheLongerHeaderArrivesWhole) {
  for (const Shape shape : testing::shapes_of(GetParam())) {
    TwoEnds ends{GetParam(), shape, 0, nf::hash_report};
    exchange(ends, shape, sizes_by(211));
    ASSERT_FALSE(HasFailure()) << "shape " << static_cast<int>(shape);
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, EveryFrame,
                         ::testing::Combine(either(), either(), either(), either(), either(),
                                            either(), either()));

class EverySize : public ::testing::TestWithParam<Ways> {};

TEST_P(EverySize, ArrivesWhole) {
  for (const Shape shape : testing::shapes_of(GetParam())) {
    TwoEnds ends{GetParam(), shape};
    exchange(ends, shape, sizes_by(1));
    ASSERT_FALSE(HasFailure()) << "shape " << static_cast<int>(shape);
  }
}

INSTANTIATE_TEST_SUITE_P(Plain, EverySize,
                         ::testing::Combine(either(), either(), always(), always(), never(),
                                            never(), never()));
INSTANTIATE_TEST_SUITE_P(Logged, EverySize,
                         ::testing::Combine(either(), either(), always(), always(), never(),
                                            always(), never()));
INSTANTIATE_TEST_SUITE_P(Tracked, EverySize,
                         ::testing::Combine(either(), either(), always(), always(), never(),
                                            never(), always()));
INSTANTIATE_TEST_SUITE_P(InOrder, EverySize,
                         ::testing::Combine(either(), either(), always(), always(), always(),
                                            never(), never()));

class EveryCut : public ::testing::TestWithParam<Ways> {};

// One frame, sent in these pieces and received in those buffers.
void pass(TwoEnds& ends, std::size_t number, std::size_t size, const Cut& sent,
          const std::vector<Cut>& buffers) {
  const Bytes frame = testing::numbered_frame(number, size);
  Bytes all(ends.header_of_sender());
  all.insert(all.end(), frame.begin(), frame.end());
  for (const Cut& buffer : buffers) ends.queues.receiving.post(buffer);
  ends.send_cut(all, sent);
  ends.run();
  const auto got = ends.next();
  ASSERT_TRUE(testing::same(got.frame, frame)) << "frame of " << size;
  EXPECT_EQ(got.header.num_buffers.host(), buffers.size());
  ends.expect_all_settled(1);
}

TEST_P(EveryCut, InTwoArrivesWhole) {
  constexpr std::size_t header = sizeof(NetHeader);
  TwoEnds ends{GetParam(), Shape::pieces};
  std::size_t number = 0;
  for (const std::size_t size : {60u, 127u, 128u, 129u, 192u, 1514u}) {
    const std::size_t all = header + size;
    for (std::size_t cut = 1; cut < all; ++cut) {
      pass(ends, number++, size, {cut}, {{all}});
      pass(ends, number++, size, {}, {{cut, all - cut}});
      if (ends.mergeable() && cut >= header) {
        pass(ends, number++, size, {}, {{cut}, {all - cut}});
        pass(ends, number++, size, {all - cut}, {{cut}, {all - cut}});
      }
      ASSERT_FALSE(HasFailure()) << "frame of " << size << " cut at " << cut;
    }
  }
  ends.finish();
}

// More pieces than the switch carries, too.
TEST_P(EveryCut, InManyArrivesWhole) {
  constexpr std::size_t header = sizeof(NetHeader);
  TwoEnds ends{GetParam(), Shape::pieces};
  std::mt19937 random{11};
  for (std::size_t number = 0; number < 400; ++number) {
    const std::size_t size = frame_least + random() % (frame_most - frame_least + 1);
    const std::size_t all = header + size;
    const auto in_pieces = [&](std::size_t bytes, std::size_t most) {
      Cut cut = ends.random_cut(bytes, 1 + random() % most);
      cut.push_back(bytes - std::accumulate(cut.begin(), cut.end(), std::size_t{0}));
      return cut;
    };
    std::vector<Cut> buffers;
    const std::size_t first = ends.mergeable() ? header + random() % (all - header) : all;
    buffers.push_back(in_pieces(first, 30));
    for (std::size_t left = all - first; left > 0;) {
      const std::size_t bytes = std::min<std::size_t>(left, 1000 + random() % 3000);
      buffers.push_back(in_pieces(bytes, 20));
      left -= bytes;
    }
    pass(ends, number, size, ends.random_cut(all, 1 + random() % 120), buffers);
    ASSERT_FALSE(HasFailure()) << "frame " << number << " of " << size;
  }
  ends.finish();
}

INSTANTIATE_TEST_SUITE_P(Ways, EveryCut,
                         ::testing::Combine(either(), either(), either(), always(), never(),
                                            either(), either()));

}  // namespace
}  // namespace millrace::net

// Rings: when they start, change and stop.
#include <gtest/gtest.h>

#include "vhost/testing/harness.hpp"

namespace millrace::vhost {
namespace {

using testing::Harness;
using testing::ring_at;
using wire::Request;
namespace p = wire::protocol;
namespace f = virtio::feature;

TEST(SessionRing, StartsAtItsKickWithAllThatWasSaid) {
  Harness h;
  h.negotiate();
  h.give_memory();
  ASSERT_TRUE(h.frontend.set_vring_num(1, 128));
  ASSERT_TRUE(h.frontend.set_vring_base(1, 77));
  ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(1, Harness::user_base)));
  ASSERT_TRUE(h.frontend.set_vring_call(1, h.call.get()));
  ASSERT_TRUE(h.device.started.empty());
  ASSERT_TRUE(h.frontend.set_vring_kick(1, h.kick.get()));
  ASSERT_EQ(h.device.started.count(1), 1u);
  const auto& start = h.device.started[1].start;
  EXPECT_EQ(start.index, 1u);
  EXPECT_EQ(start.ring.size, 128u);
  EXPECT_EQ(start.ring.base, 77u);
  EXPECT_EQ(start.ring.descriptors, Harness::user_base);
  EXPECT_EQ(start.ring.driver_area, Harness::user_base + 0x1000);
  EXPECT_EQ(start.ring.device_area, Harness::user_base + 0x2000);
  EXPECT_EQ(start.ring.log_address, 0x2000u);
  EXPECT_EQ(start.ring.features, h.device.negotiated);
  EXPECT_FALSE(start.ring.log_ring);
  EXPECT_TRUE(start.kick.valid());
  EXPECT_TRUE(start.call.valid());
  EXPECT_FALSE(start.error.valid());
  EXPECT_FALSE(start.enabled);
  EXPECT_EQ(start.memory, h.session->memory().snapshot());
}

TEST(SessionRing, StartsWhenTheLastMissingPieceComes) {
  for (int last = 0; last < 3; ++last) {
    Harness h;
    h.negotiate();
    ASSERT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
    if (last != 0) h.give_memory();
    if (last != 1) {
      ASSERT_TRUE(h.frontend.set_vring_num(0, 64));
    }
    if (last != 2) {
      ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(0, Harness::user_base)));
    }
    ASSERT_TRUE(h.device.started.empty());
    if (last == 0) h.give_memory();
    if (last == 1) {
      ASSERT_TRUE(h.frontend.set_vring_num(0, 64));
    }
    if (last == 2) {
      ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(0, Harness::user_base)));
    }
    EXPECT_EQ(h.device.started.count(0), 1u) << last;
  }
}

TEST(SessionRing, ANoFdKickStartsAPolledRing) {
  Harness h;
  h.negotiate();
  h.give_memory();
  ASSERT_TRUE(h.frontend.set_vring_num(0, 64));
  ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(0, Harness::user_base)));
  ASSERT_TRUE(h.frontend.set_vring_call(0, -1));
  ASSERT_TRUE(h.frontend.set_vring_err(0, -1));
  ASSERT_TRUE(h.frontend.set_vring_kick(0, -1));
  ASSERT_EQ(h.device.started.count(0), 1u);
  EXPECT_FALSE(h.device.started[0].start.kick.valid());
  EXPECT_FALSE(h.device.started[0].start.call.valid());
}

TEST(SessionRing, IsEnabledByMessageOrAtOnceWithoutProtocolFeatures) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.set_up_ring(0);
  EXPECT_FALSE(h.device.started[0].start.enabled);
  ASSERT_TRUE(h.frontend.set_vring_enable(0, true));
  EXPECT_TRUE(h.device.started[0].start.enabled);
  ASSERT_TRUE(h.frontend.set_vring_enable(0, false));
  EXPECT_FALSE(h.device.started[0].start.enabled);
  EXPECT_FALSE(h.frontend.request(Request::set_vring_enable, bytes_of(wire::VringState{0, 2})));
  // Enabled before it is set up: known at the start.
  ASSERT_TRUE(h.frontend.set_vring_enable(1, true));
  h.set_up_ring(1);
  EXPECT_TRUE(h.device.started[1].start.enabled);

  Harness old;
  old.negotiate(0, f::protocol_features);
  old.give_memory();
  old.set_up_ring(0);
  EXPECT_TRUE(old.device.started[0].start.enabled);
}

TEST(SessionRing, GetVringBaseStopsAndAnswersThePosition) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0, 5);
  h.device.started[0].position = 42;
  EXPECT_EQ(*h.frontend.get_vring_base(0), 42u);
  EXPECT_TRUE(h.device.started.empty());
  // Twice, and of a ring that never was.
  EXPECT_EQ(*h.frontend.get_vring_base(0), 42u);
  EXPECT_EQ(*h.frontend.get_vring_base(3), 0u);
  ASSERT_TRUE(h.frontend.set_vring_base(2, 9));
  EXPECT_EQ(*h.frontend.get_vring_base(2), 9u);
}

TEST(SessionRing, AStoppedRingWaitsForANewKick) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  h.device.started[0].position = 42;
  ASSERT_TRUE(h.frontend.get_vring_base(0));
  ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(0, Harness::user_base + 0x8000)));
  EXPECT_TRUE(h.device.started.empty());
  ASSERT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
  ASSERT_EQ(h.device.started.count(0), 1u);
  EXPECT_EQ(h.device.started[0].start.ring.base, 42u);
  EXPECT_TRUE(h.device.started[0].start.enabled);
}

TEST(SessionRing, DescriptorsOfARunningRingAreReplaced) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  const auto before = testing::open_fds();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
    ASSERT_TRUE(h.frontend.set_vring_call(0, h.call.get()));
    ASSERT_TRUE(h.frontend.set_vring_err(0, h.call.get()));
  }
  EXPECT_TRUE(h.called("kick 0"));
  EXPECT_TRUE(h.called("call 0"));
  EXPECT_EQ(testing::open_fds(), before + 1);  // the error descriptor
}

TEST(SessionRing, RefusesAnIndexBeforeNarrowingIt) {
  Harness h;
  h.negotiate();
  for (const std::uint32_t index : {4u, 255u, 0x10000u, 0x80000000u, ~0u}) {
    EXPECT_FALSE(h.frontend.set_vring_num(index, 64)) << index;
    EXPECT_FALSE(h.frontend.set_vring_base(index, 0)) << index;
    EXPECT_FALSE(h.frontend.set_vring_addr(ring_at(index, Harness::user_base))) << index;
    EXPECT_FALSE(h.frontend.set_vring_enable(index, true)) << index;
  }
  const std::array<int, 1> fds{h.kick.get()};
  for (const std::uint64_t word : {4ull, 0xffull, 0x200ull, 1ull << 32, ~0ull & ~0x100ull}) {
    for (const auto request :
         {Request::set_vring_kick, Request::set_vring_call, Request::set_vring_err}) {
      EXPECT_FALSE(h.frontend.request(request, bytes_of(word), fds)) << word;
    }
  }
  EXPECT_FALSE(h.ended);
  EXPECT_FALSE(h.frontend.get_vring_base(4));
}

TEST(SessionRing, RefusesBadSizesAndBases) {
  Harness h;
  h.negotiate();
  EXPECT_FALSE(h.frontend.set_vring_num(0, 0));
  EXPECT_FALSE(h.frontend.set_vring_num(0, 32769));
  EXPECT_FALSE(h.frontend.set_vring_num(0, 65536));
  EXPECT_TRUE(h.frontend.set_vring_num(0, 32768));
  EXPECT_FALSE(h.frontend.set_vring_base(0, 0x10000));
  EXPECT_TRUE(h.frontend.set_vring_base(0, 0xffff));
  ASSERT_TRUE(h.frontend.set_features(h.features | f::ring_packed));
  EXPECT_TRUE(h.frontend.set_vring_base(0, 0x80008000));
}

TEST(SessionRing, TakesEventfdsOnly) {
  Harness h;
  h.negotiate();
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  const base::Fd read_end{pipe[0]}, write_end{pipe[1]};
  const auto memory = testing::make_memory(4096);
  const base::Fd directory{::open("/", O_RDONLY | O_CLOEXEC)}, zero{::open("/dev/zero", O_RDWR)};
  for (const int fd :
       {read_end.get(), write_end.get(), memory.get(), directory.get(), zero.get()}) {
    EXPECT_FALSE(h.frontend.set_vring_kick(0, fd));
    EXPECT_FALSE(h.frontend.set_vring_call(0, fd));
    EXPECT_FALSE(h.frontend.set_vring_err(0, fd));
    EXPECT_FALSE(h.frontend.set_log_fd(fd));
  }
  EXPECT_TRUE(h.frontend.set_vring_err(0, h.kick.get()));
  EXPECT_TRUE(h.frontend.set_log_fd(h.kick.get()));
}

TEST(SessionRing, TheNoFdBitAndTheDescriptorMustAgree) {
  Harness h;
  h.negotiate();
  const std::array<int, 1> fds{h.kick.get()};
  EXPECT_FALSE(h.frontend.request(Request::set_vring_kick, bytes_of(std::uint64_t{0x100}), fds));
  EXPECT_FALSE(h.frontend.request(Request::set_vring_kick, bytes_of(std::uint64_t{0})));
}

TEST(SessionRing, TheShapeOfARunningRingStays) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  EXPECT_FALSE(h.frontend.set_vring_num(0, 512));
  EXPECT_TRUE(h.frontend.set_vring_num(0, 256));
  EXPECT_FALSE(h.frontend.set_vring_base(0, 1));
  EXPECT_FALSE(h.frontend.set_features(h.features ^ f::event_idx));
  EXPECT_EQ(h.device.started.count(0), 1u);
}

TEST(SessionRing, ADisabledRingMayBeSetUpAnew) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0, 10);
  ASSERT_TRUE(h.frontend.set_vring_enable(0, false));
  ASSERT_TRUE(h.frontend.set_features(h.features ^ f::event_idx));
  EXPECT_TRUE(h.device.started.empty());
  EXPECT_EQ(h.device.negotiated & f::event_idx, 0u);
  h.start_ring(0, 0);
  EXPECT_EQ(h.device.started[0].start.ring.base, 0u);
  ASSERT_TRUE(h.frontend.set_vring_enable(0, false));
  ASSERT_TRUE(h.frontend.set_vring_base(0, 3));
  EXPECT_TRUE(h.device.started.empty());
  ASSERT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
  EXPECT_EQ(h.device.started[0].start.ring.base, 3u);
  ASSERT_TRUE(h.frontend.set_vring_num(0, 64));
  ASSERT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
  EXPECT_EQ(h.device.started[0].start.ring.size, 64u);
  ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(0, Harness::user_base + 0x8000)));
  EXPECT_TRUE(h.device.started.empty());
}

TEST(SessionRing, AnAddressSentAgainSwitchesTheRingsLog) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0, 10);
  h.device.started[0].position = 1234;
  auto address = ring_at(0, Harness::user_base);
  address.flags = wire::vring_flag_log;
  ASSERT_TRUE(h.frontend.set_vring_addr(address));
  ASSERT_EQ(h.device.started.count(0), 1u);
  EXPECT_TRUE(h.device.started[0].start.ring.log_ring);
  EXPECT_TRUE(h.device.started[0].start.enabled);
  EXPECT_TRUE(h.device.started[0].start.kick.valid());
  EXPECT_EQ(h.device.started[0].start.ring.base, 1234u);
  const auto calls = h.device.calls.size();
  ASSERT_TRUE(h.frontend.set_vring_addr(address));
  EXPECT_EQ(h.device.calls.size(), calls);
}

TEST(SessionRing, ADisabledRingKeepsItsKickWhenOnlyTheLogChanges) {
  Harness h;
  h.negotiate();
  h.give_memory();
  h.start_ring(0);
  ASSERT_TRUE(h.frontend.set_vring_enable(0, false));
  auto address = ring_at(0, Harness::user_base);
  address.flags = wire::vring_flag_log;
  ASSERT_TRUE(h.frontend.set_vring_addr(address));
  ASSERT_EQ(h.device.started.count(0), 1u);
  EXPECT_FALSE(h.device.started[0].start.enabled);
}

TEST(SessionRing, ARingThatCannotStartIsRefusedAndMayTryAgain) {
  Harness h;
  h.negotiate();
  h.give_memory();
  ASSERT_TRUE(h.frontend.set_vring_num(0, 64));
  ASSERT_TRUE(h.frontend.set_vring_addr(ring_at(0, Harness::user_base)));
  h.device.fail_next = true;
  EXPECT_FALSE(h.frontend.set_vring_kick(0, h.kick.get()));
  EXPECT_EQ(h.session->phase(), Session::Phase::negotiating);
  EXPECT_TRUE(h.frontend.set_vring_kick(0, h.kick.get()));
  EXPECT_EQ(h.session->phase(), Session::Phase::running);
}

}  // namespace
}  // namespace millrace::vhost

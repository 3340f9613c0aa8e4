// What both rings promise their users, and how they take what no driver should do.
#include "virtio/ring.hpp"

#include <gtest/gtest.h>

#include "virtio/packed_ring.hpp"
#include "virtio/split_ring.hpp"
#include "virtio/testing/open_ring.hpp"

namespace millrace::virtio {
namespace {

using base::le16;
using base::le32;
using base::le64;
using testing::DriverConfig;
using testing::FakeDriver;
using testing::Layout;
using testing::open_ring;
using testing::plain;

// Fills the whole ring with one-descriptor buffers, takes and gives all at once, twice around.
template <class R>
void full_ring(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  const auto chain = std::make_unique<Chain>();
  for (unsigned lap = 0; lap < 5; ++lap) {
    std::vector<Ticket> tickets;
    while (driver.add({{FakeDriver::data_address, 1}}, {})) {
    }
    static_cast<void>(driver.publish());
    while (ring.take(*chain) == Take::chain) tickets.push_back(chain->ticket());
    ASSERT_EQ(tickets.size(), config.size);
    for (auto it = tickets.rbegin(); it != tickets.rend(); ++it) ring.give(*it, 0);
    EXPECT_TRUE(ring.publish());
    unsigned reaped = 0;
    for (; driver.poll(); ++reaped) {
    }
    EXPECT_EQ(reaped, config.size);
    EXPECT_FALSE(driver.arm());
  }
}

TEST(SplitRing, TakesAndGivesAWholeRing) {
  full_ring<SplitRing>({.size = 8, .start = 65533});
  full_ring<SplitRing>({.size = 8, .features = plain, .start = 65533});
  full_ring<SplitRing>({.size = 32768, .start = 65533});
}
TEST(PackedRing, TakesAndGivesAWholeRing) {
  full_ring<PackedRing>({.size = 7, .packed = true, .start = 5});
  full_ring<PackedRing>({.size = 7, .packed = true, .features = plain, .start = 5});
  full_ring<PackedRing>({.size = 32768, .packed = true});
}

TEST(SplitRing, RefusesShapes) {
  const FakeDriver driver{{.size = 8}};
  const auto refused = [&](auto change) {
    RingSetup setup = driver.setup();
    change(setup);
    const auto ring = SplitRing::open(setup, *driver.memory(), nullptr);
    return ring ? Fault::none : ring.error();
  };
  EXPECT_EQ(refused([](auto&) {}), Fault::none);
  for (const std::uint32_t size : {0u, 3u, 6u, 32769u, 65536u, ~0u}) {
    EXPECT_EQ(refused([size](auto& s) { s.size = size; }), Fault::bad_queue_size) << size;
  }
  EXPECT_EQ(refused([](auto& s) { s.descriptors += 8; }), Fault::ring_misaligned);
  EXPECT_EQ(refused([](auto& s) { s.driver_area += 1; }), Fault::ring_misaligned);
  EXPECT_EQ(refused([](auto& s) { s.device_area += 2; }), Fault::ring_misaligned);
  EXPECT_EQ(refused([](auto& s) { s.descriptors = 0; }), Fault::ring_outside_memory);
  EXPECT_EQ(refused([](auto& s) { s.driver_area = ~1ull; }), Fault::ring_outside_memory);
  // Its last byte past the region.
  const auto end = driver.setup().descriptors + driver.memory()->regions()[0].size;
  EXPECT_EQ(refused([end](auto& s) { s.device_area = end - 8 * 8 - 4; }),
            Fault::ring_outside_memory);
  EXPECT_EQ(refused([end](auto& s) { s.device_area = end - 8 * 8 - 8; }), Fault::none);
}

TEST(PackedRing, RefusesShapes) {
  const FakeDriver driver{{.size = 5, .packed = true}};
  const auto refused = [&](auto change) {
    RingSetup setup = driver.setup();
    change(setup);
    const auto ring = PackedRing::open(setup, *driver.memory(), nullptr);
    return ring ? Fault::none : ring.error();
  };
  EXPECT_EQ(refused([](auto&) {}), Fault::none);
  EXPECT_EQ(refused([](auto& s) { s.size = 0; }), Fault::bad_queue_size);
  EXPECT_EQ(refused([](auto& s) { s.size = 32769; }), Fault::bad_queue_size);
  EXPECT_EQ(refused([](auto& s) { s.descriptors += 8; }), Fault::ring_misaligned);
  EXPECT_EQ(refused([](auto& s) { s.driver_area += 2; }), Fault::ring_misaligned);
  EXPECT_EQ(refused([](auto& s) { s.base = 5; }), Fault::position_bad);
  EXPECT_EQ(refused([](auto& s) { s.base = 0x8004; }), Fault::none);
  EXPECT_EQ(refused([](auto& s) { s.device_area = 64; }), Fault::ring_outside_memory);
}

TEST(SplitRing, GoesOnAtTheUsedIndexWhateverTheBase) {
  FakeDriver driver{{.size = 8, .start = 100}};
  ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver.publish());
  RingSetup setup = driver.setup();
  setup.base = 101;  // the available index, as some front-ends send it after a crash of ours
  auto ring = SplitRing::open(setup, *driver.memory(), nullptr);
  ASSERT_TRUE(ring);
  Chain chain;
  EXPECT_EQ(ring->position(), 100u);
  EXPECT_EQ(ring->take(chain), Take::chain);
  EXPECT_EQ(ring->position(), 101u);
}

TEST(PackedRing, PositionHoldsBothPlaces) {
  FakeDriver driver{{.size = 4, .packed = true, .start = 3, .start_wrap = false}};
  auto ring = open_ring<PackedRing>(driver);
  EXPECT_EQ(ring.position(), 0x0003'0003u);
  ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}, {FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver.publish());
  Chain chain;
  ASSERT_EQ(ring.take(chain), Take::chain);
  EXPECT_EQ(ring.position(), 0x0003'8001u);
  ring.give(chain.ticket(), 0);
  static_cast<void>(ring.publish());
  EXPECT_EQ(ring.position(), 0x8001'8001u);
  // A front-end that knows only the available half.
  RingSetup setup = driver.setup();
  setup.base = 0x8001;
  auto again = PackedRing::open(setup, *driver.memory(), nullptr);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->position(), 0x8001'8001u);
}

TEST(SplitRing, FaultsStick) {
  const auto poisoned = [](auto hostile) {
    FakeDriver driver{{.size = 8}};
    auto ring = open_ring<SplitRing>(driver);
    EXPECT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver.publish());
    const auto chain = std::make_unique<Chain>();
    EXPECT_EQ(ring.take(*chain), Take::chain);
    const Ticket ticket = chain->ticket();
    hostile(driver);
    EXPECT_EQ(SplitRing::Cursor{ring}.next(false).size, 0u);
    EXPECT_EQ(ring.fault(), Fault::none);
    EXPECT_EQ(ring.take(*chain), Take::fault);
    EXPECT_EQ(ring.take(*chain), Take::fault);
    EXPECT_FALSE(ring.arm());
    ring.give(ticket, 0);  // still possible
    static_cast<void>(ring.publish());
    EXPECT_EQ(driver.used()->index.host(), 1);
    return ring.fault();
  };
  for (const unsigned jump : {10u, 0x8000u, 0xffffu}) {
    EXPECT_EQ(poisoned([jump](auto& d) {
                d.available()->index = le16{static_cast<std::uint16_t>(1 + jump)};
              }),
              Fault::avail_index_jump);
  }
  EXPECT_EQ(poisoned([](auto& d) { d.available()->index = le16{0}; }), Fault::avail_index_jump);
  const auto publish_head = [](std::uint16_t head) {
    return [head](FakeDriver& d) {
      d.available_ring()[1] = le16{head};
      d.available()->index = le16{2};
    };
  };
  EXPECT_EQ(poisoned(publish_head(8)), Fault::head_out_of_range);
  EXPECT_EQ(poisoned(publish_head(0xffff)), Fault::head_out_of_range);
  EXPECT_EQ(poisoned(publish_head(0)), Fault::head_in_flight);
  EXPECT_EQ(poisoned(publish_head(7)), Fault::chain_empty);
}

// A driver that goes on publishing what it published, before it sees any of it given back, does not
// make the device give back more than the ring has places.
TEST(SplitRing, NoVisitTakesMoreThanTheRingHas) {
  constexpr unsigned size = 4;
  for (const unsigned more : {1u, 2u, size}) {
    FakeDriver driver{{.size = size}};
    auto ring = open_ring<SplitRing>(driver);
    while (driver.add({{FakeDriver::data_address, 1}}, {})) {
    }
    static_cast<void>(driver.publish());
    std::vector<Ticket> tickets;
    {
      SplitRing::Cursor cursor{ring};
      for (unsigned i = 0; i < size; ++i) {
        ASSERT_EQ(cursor.next(false).size, 1u);
        tickets.push_back(cursor.take());
        if (i % 2 == 0) cursor.give(tickets.back(), 0);
      }
      driver.available()->index = le16{static_cast<std::uint16_t>(size + more)};
      EXPECT_EQ(cursor.next(false).size, 0u);
    }
    EXPECT_EQ(SplitRing::Cursor{ring}.next(false).size, 0u);
    const auto chain = std::make_unique<Chain>();
    EXPECT_EQ(ring.take(*chain), Take::fault);
    EXPECT_EQ(ring.fault(), Fault::avail_index_jump);
    for (unsigned i = 1; i < size; i += 2) ring.give(tickets[i], 0);
    static_cast<void>(ring.publish());
    EXPECT_EQ(driver.used()->index.host(), size);
  }
}

// What is given back at once may come twice; what is held may not.
template <class R>
void published_twice(bool packed) {
  FakeDriver driver{{.size = 4, .packed = packed}};
  R ring = open_ring<R>(driver);
  const auto publish_again = [&](unsigned at) {
    if (packed) {
      auto& descriptor = driver.packed_ring()[at];
      descriptor = driver.packed_ring()[0];
      descriptor.id = le16{0};
      descriptor.flags = le16{wire::descriptor_available};
    } else {
      driver.available_ring()[at] = le16{0};
      driver.available()->index = le16{static_cast<std::uint16_t>(at + 1)};
    }
  };
  ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver.publish());
  publish_again(1);
  {
    typename R::Cursor cursor{ring};
    for (unsigned i = 0; i < 2; ++i) {
      ASSERT_EQ(cursor.next(false).size, 1u);
      cursor.give(cursor.take(), 0);
    }
  }
  EXPECT_EQ(ring.pending(), 2u);
  publish_again(2);
  const auto chain = std::make_unique<Chain>();
  ASSERT_EQ(ring.take(*chain), Take::chain);
  publish_again(3);
  EXPECT_EQ(typename R::Cursor{ring}.next(false).size, 0u);
  const Ticket held = chain->ticket();
  EXPECT_EQ(ring.take(*chain), Take::fault);
  EXPECT_EQ(ring.fault(), Fault::head_in_flight);
  typename R::Cursor{ring}.give(held, 0);
  EXPECT_EQ(ring.pending(), 3u);
}

TEST(SplitRing, WhatIsHeldIsNotTakenAgain) {
  published_twice<SplitRing>(false);
}
TEST(PackedRing, WhatIsHeldIsNotTakenAgain) {
  published_twice<PackedRing>(true);
}

TEST(PackedRing, FaultsStick) {
  const auto next = [](unsigned flags, std::uint16_t id, std::uint32_t length = 1) {
    return wire::PackedDescriptor{
        le64{FakeDriver::data_address}, le32{length}, le16{id},
        le16{static_cast<std::uint16_t>(flags | wire::descriptor_available)}};
  };
  const auto poisoned = [](const wire::PackedDescriptor& hostile, bool everywhere = false) {
    FakeDriver driver{{.size = 4, .packed = true}};
    auto ring = open_ring<PackedRing>(driver);
    EXPECT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver.publish());
    const auto chain = std::make_unique<Chain>();
    EXPECT_EQ(ring.take(*chain), Take::chain);
    const Ticket ticket = chain->ticket();
    for (unsigned i = 1; i < (everywhere ? 4u : 2u); ++i) driver.packed_ring()[i] = hostile;
    EXPECT_EQ(ring.take(*chain), Take::fault);
    EXPECT_EQ(ring.take(*chain), Take::fault);
    ring.give(ticket, 0);
    static_cast<void>(ring.publish());
    EXPECT_TRUE(driver.poll());
    return ring.fault();
  };
  EXPECT_EQ(poisoned(next(0, 0)), Fault::head_in_flight);
  EXPECT_EQ(poisoned(next(0, 4)), Fault::head_out_of_range);
  EXPECT_EQ(poisoned(next(0, 0xffff)), Fault::head_out_of_range);
  EXPECT_EQ(poisoned(next(0, 1, 0)), Fault::chain_empty);
  EXPECT_EQ(poisoned(next(wire::descriptor_next, 1), true), Fault::chain_loop);
  EXPECT_EQ(poisoned(next(wire::descriptor_next | wire::descriptor_indirect, 1, 16)),
            Fault::indirect_bad);
  EXPECT_EQ(poisoned(next(wire::descriptor_indirect, 1, 0)), Fault::indirect_bad);
}

TEST(PackedRing, LeavesDescriptorsOfTheWrongLapAlone) {
  FakeDriver driver{{.size = 4, .packed = true}};
  auto ring = open_ring<PackedRing>(driver);
  const auto chain = std::make_unique<Chain>();
  for (const unsigned flags : {0u, unsigned{wire::descriptor_used},
                               unsigned{wire::descriptor_available} | wire::descriptor_used}) {
    driver.packed_ring()[0].flags = le16{static_cast<std::uint16_t>(flags)};
    EXPECT_EQ(ring.take(*chain), Take::empty) << flags;
  }
}

// --- Notifications ---

template <class R>
void kicks(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  Chain chain;
  const auto add = [&] {
    EXPECT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
    return driver.publish();
  };
  const auto serve = [&] {
    while (ring.take(chain) == Take::chain) ring.give(chain.ticket(), 0);
    static_cast<void>(ring.publish());
    while (driver.poll()) {
    }
  };
  for (unsigned round = 0; round < 3 * config.size; ++round) {
    ring.disarm();
    EXPECT_FALSE(ring.arm());
    EXPECT_TRUE(add());  // armed: the driver must kick
    EXPECT_TRUE(ring.arm());
    serve();
    ring.disarm();
    EXPECT_FALSE(ring.arm());
    ring.disarm();
    const bool kicked = add();
    EXPECT_TRUE(ring.arm());  // came in between: seen without a kick
    if ((config.features & feature::event_idx) == 0 || config.packed) {
      EXPECT_FALSE(kicked);
    }
    serve();
  }
}

TEST(SplitRing, ArmsAndDisarms) {
  kicks<SplitRing>({.size = 4, .start = 65533});
  kicks<SplitRing>({.size = 4, .features = plain, .start = 65533});
}
TEST(PackedRing, ArmsAndDisarms) {
  kicks<PackedRing>({.size = 5, .packed = true});
  kicks<PackedRing>({.size = 5, .packed = true, .features = plain});
}

// One buffer at a time: a call comes exactly where the driver asked for one.
template <class R>
void calls(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  Chain chain;
  for (unsigned round = 0; round < 4 * config.size + 3; ++round) {
    const bool wanted = round % 3 != 1;
    if (wanted) {
      EXPECT_FALSE(driver.arm());
    } else {
      driver.disarm();
    }
    ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver.publish());
    ASSERT_EQ(ring.take(chain), Take::chain);
    EXPECT_FALSE(ring.publish());  // nothing given, nothing to tell
    ring.give(chain.ticket(), 0);
    EXPECT_EQ(ring.publish(), wanted) << round;
    if (wanted) {
      EXPECT_TRUE(driver.arm());
    }
    EXPECT_TRUE(driver.poll());
  }
}

TEST(SplitRing, CallsWhereAsked) {
  calls<SplitRing>({.size = 4, .start = 65530});
  calls<SplitRing>({.size = 4, .features = plain, .start = 65530});
}
TEST(PackedRing, CallsWhereAsked) {
  calls<PackedRing>({.size = 3, .packed = true});
  calls<PackedRing>({.size = 8, .packed = true, .start = 6});
  calls<PackedRing>({.size = 8, .packed = true, .features = plain});
}

// The word to look at is another as soon as there is a buffer, wherever the ring stands.
template <class R>
void glances(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  Chain chain;
  const auto news = [](const base::Glance& glance) {
    return glance.word == nullptr || load_once(glance.word) != glance.idle;
  };
  const auto add = [&] {
    const bool added = driver.add({{FakeDriver::data_address, 1}}, {}).has_value();
    if (added) static_cast<void>(driver.publish());
    return added;
  };
  for (unsigned lap = 0; lap < 2 * config.size + 3; ++lap) {
    ASSERT_EQ(ring.take(chain), Take::empty);
    EXPECT_FALSE(news(ring.glance())) << lap;
    const auto glance = ring.glance();
    std::vector<Ticket> tickets;
    const unsigned count = 1 + lap % config.size;
    for (unsigned i = 0; i < count; ++i) ASSERT_TRUE(add());
    EXPECT_TRUE(news(glance)) << lap;
    EXPECT_TRUE(news(ring.glance())) << "of a buffer that came after the last look";
    while (ring.take(chain) == Take::chain) tickets.push_back(chain.ticket());
    ASSERT_EQ(tickets.size(), count);
    const auto full = ring.glance();  // also where the driver has no room
    for (const Ticket& ticket : tickets) ring.give(ticket, 0);
    static_cast<void>(ring.publish());
    while (driver.poll()) {
    }
    ASSERT_TRUE(add());
    EXPECT_TRUE(news(full)) << lap;
    ASSERT_EQ(ring.take(chain), Take::chain);
    ring.give(chain.ticket(), 0);
    static_cast<void>(ring.publish());
    EXPECT_TRUE(driver.poll());
  }
}

// A look ahead changes nothing of what take() says.
template <class R>
void looks_ahead(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  Chain chain;
  for (unsigned lap = 0; lap < 3 * config.size; ++lap) {
    ring.look(64);
    ring.prefetch_to_write(64, true);
    ASSERT_EQ(ring.take(chain), Take::empty);
    const unsigned count = 1 + lap % config.size;
    for (unsigned i = 0; i < count; ++i) {
      ASSERT_TRUE(driver.add({}, {{FakeDriver::data_address, 1}}).has_value());
      static_cast<void>(driver.publish());
      if (i % 2 == 0) ring.look(64);
    }
    ring.prefetch_to_write(64, true);
    for (unsigned i = 0; i < count; ++i) {
      ASSERT_EQ(ring.take(chain), Take::chain) << lap;
      ring.look(1);
      ring.give(chain.ticket(), 1);
    }
    EXPECT_EQ(ring.take(chain), Take::empty);
    static_cast<void>(ring.publish());
    unsigned reaped = 0;
    while (driver.poll()) ++reaped;
    EXPECT_EQ(reaped, count);
  }
}

TEST(SplitRing, LooksAheadWithoutAnEffect) {
  looks_ahead<SplitRing>({.size = 4, .start = 65530});
}
TEST(PackedRing, LooksAheadWithoutAnEffect) {
  looks_ahead<PackedRing>({.size = 5, .packed = true});
}

// A fault that a look ahead finds is take()'s to answer: only its caller tells of it.
TEST(SplitRing, ALookAheadFindsNoFault) {
  FakeDriver driver{{.size = 4}};
  auto ring = open_ring<SplitRing>(driver);
  Chain chain;
  driver.available()->index = le16{9};
  ring.look(64);
  EXPECT_EQ(ring.fault(), Fault::none);
  EXPECT_EQ(ring.take(chain), Take::fault);
  EXPECT_EQ(ring.fault(), Fault::avail_index_jump);
}

TEST(SplitRing, OneWordTellsOfBuffers) {
  glances<SplitRing>({.size = 4, .start = 65530});
}
TEST(PackedRing, OneWordTellsOfBuffers) {
  glances<PackedRing>({.size = 5, .packed = true});
  glances<PackedRing>({.size = 8, .packed = true, .start = 6});
}

// What was shown in several steps is asked about once, and counts as a whole.
template <class R>
void calls_asked_later(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  Chain chain;
  const auto serve = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
      static_cast<void>(driver.publish());
      ASSERT_EQ(ring.take(chain), Take::chain);
      ring.give(chain.ticket(), 0);
      ring.show();
      EXPECT_TRUE(driver.poll());
    }
  };
  EXPECT_FALSE(ring.wants_call());  // nothing was shown
  for (unsigned round = 0; round < 2 * config.size; ++round) {
    EXPECT_FALSE(driver.arm());
    serve(3);
    full_fence();
    EXPECT_TRUE(ring.wants_call()) << round;
    EXPECT_FALSE(ring.wants_call()) << round;  // it was asked about that
    driver.disarm();
    serve(2);
    full_fence();
    EXPECT_FALSE(ring.wants_call()) << round;
  }
  if ((config.features & feature::event_idx) == 0) return;
  serve(2);
  EXPECT_FALSE(driver.arm());  // it has seen them all
  full_fence();
  EXPECT_FALSE(ring.wants_call());
  // Round and round, past the place that it waits for, until that is ahead again.
  serve(config.packed ? 2 * config.size : 1u << 16);
  full_fence();
  EXPECT_TRUE(ring.wants_call());
}

TEST(SplitRing, AsksLaterAboutAllThatWasShown) {
  calls_asked_later<SplitRing>({.size = 4, .start = 65530});
  calls_asked_later<SplitRing>({.size = 4, .features = plain, .start = 65530});
}
TEST(PackedRing, AsksLaterAboutAllThatWasShown) {
  calls_asked_later<PackedRing>({.size = 5, .packed = true});
  calls_asked_later<PackedRing>({.size = 8, .packed = true, .start = 6});
  calls_asked_later<PackedRing>({.size = 8, .packed = true, .features = plain});
}

TEST(PackedRing, EventOffsetsAtTheEdgeCostAtMostACall) {
  for (const unsigned offset : {0x7fffu, 0x8000u, 0xffffu, 4u}) {
    FakeDriver driver{{.size = 4, .packed = true}};
    auto ring = open_ring<PackedRing>(driver);
    Chain chain;
    ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver.publish());
    ASSERT_EQ(ring.take(chain), Take::chain);
    *driver.driver_event() = {le16{static_cast<std::uint16_t>(offset)},
                              le16{wire::event_descriptor}};
    ring.give(chain.ticket(), 0);
    static_cast<void>(ring.publish());
    EXPECT_TRUE(driver.poll());
  }
}

// --- Dirty log ---

template <class R>
void logs_what_it_writes(const DriverConfig& config) {
  FakeDriver driver{config};
  R ring = open_ring<R>(driver);
  const auto bitmap = *base::Mapping::anonymous(1 << 16);
  DirtyLog log{bitmap};
  ring.set_log(&log);
  const auto marked = [&](std::uint64_t address) {
    const auto page = address / DirtyLog::page_size;
    return (std::to_integer<unsigned>(bitmap->data()[page / 8]) >> (page % 8) & 1) != 0;
  };
  Chain chain;
  ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver.publish());
  ASSERT_EQ(ring.take(chain), Take::chain);
  EXPECT_FALSE(marked(driver.device_area_guest()));
  EXPECT_FALSE(marked(driver.descriptors_guest()));
  ring.give(chain.ticket(), 0);
  static_cast<void>(ring.publish());
  EXPECT_EQ(marked(driver.device_area_guest()), !config.packed);
  EXPECT_EQ(marked(driver.descriptors_guest()), config.packed);
  static_cast<void>(ring.arm());
  EXPECT_TRUE(marked(driver.device_area_guest()));
}

TEST(SplitRing, LogsWhatItWrites) {
  logs_what_it_writes<SplitRing>({.size = 8});
}
TEST(PackedRing, LogsWhatItWrites) {
  logs_what_it_writes<PackedRing>({.size = 8, .packed = true});
}

TEST(SplitRing, MovesToAnotherSnapshotOrKeepsTheOld) {
  FakeDriver driver{{.size = 8}};
  auto ring = open_ring<SplitRing>(driver);
  Chain chain;
  ASSERT_TRUE(driver.add({{FakeDriver::data_address, 1}}, {}));
  static_cast<void>(driver.publish());
  const auto& regions = driver.memory()->regions();
  const auto same = *GuestMemory::build({regions.begin(), regions.end()});
  EXPECT_TRUE(ring.set_memory(*same));
  EXPECT_EQ(ring.take(chain), Take::chain);
  const auto without = *GuestMemory::build({regions.begin() + 1, regions.end()});
  EXPECT_FALSE(ring.set_memory(*without));
  EXPECT_EQ(ring.fault(), Fault::ring_outside_memory);
  ring.give(chain.ticket(), 0);
  static_cast<void>(ring.publish());
  EXPECT_TRUE(driver.poll());
}

}  // namespace
}  // namespace millrace::virtio

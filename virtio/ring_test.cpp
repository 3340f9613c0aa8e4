// Both rings against a reference model, at every start near the wrap, for small sizes.
#include "virtio/ring.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>

#include "virtio/packed_ring.hpp"
#include "virtio/split_ring.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using base::le16;
using base::le32;
using base::le64;
using testing::DriverConfig;
using testing::FakeDriver;
using testing::Layout;

constexpr std::uint64_t plain = feature::version_1 | feature::indirect_desc;

template <class R>
R open_ring(const FakeDriver& driver) {
  auto ring = R::open(driver.setup(), *driver.memory(), nullptr);
  EXPECT_TRUE(ring.has_value()) << name_of(ring.has_value() ? Fault::none : ring.error());
  return *std::move(ring);
}

// Random takes, rewinds, gives in random order and publishes. The model: buffers come in the order
// in which they were added, and what is given comes back with its length, in publish order.
template <class R>
struct RingModel {
  struct Added {
    std::uint16_t id;
    std::uint32_t out, in;
  };

  RingModel(const DriverConfig& config, unsigned seed)
      : driver{config},
        ring{open_ring<R>(driver)},
        in_order{(config.features & feature::in_order) != 0},
        random{seed} {}

  std::size_t pick(std::size_t below) { return random() % below; }

  void driver_adds() {
    const auto outs = static_cast<std::uint32_t>(pick(3)),
               ins = static_cast<std::uint32_t>(pick(3) + (outs == 0));
    std::vector<testing::Buffer> out(outs, {FakeDriver::data_address, 3}),
        in(ins, {FakeDriver::data_address + 512, 5});
    const auto id = driver.add(out, in, pick(3) == 0 ? Layout::indirect : Layout::direct);
    if (id) added.push_back({*id, outs * 3, ins * 5});
  }

  void driver_publishes() {
    static_cast<void>(driver.publish());
    for (; !added.empty(); added.pop_front()) published.push_back(added.front());
  }

  // The device takes some, and perhaps thinks better of it.
  void device_takes() {
    const Mark mark = ring.mark();
    const bool keep = pick(3) != 0;
    auto rest = published;
    std::vector<std::pair<Added, Ticket>> taken;
    for (auto want = pick(4) + 1; want != 0; --want) {
      const Take result = ring.take(*chain);
      if (rest.empty()) {
        ASSERT_EQ(result, Take::empty) << name_of(ring.fault());
        break;
      }
      ASSERT_EQ(result, Take::chain) << name_of(ring.fault());
      ASSERT_EQ(chain->ticket().id(), rest.front().id);
      ASSERT_EQ(chain->readable_bytes(), rest.front().out);
      ASSERT_EQ(chain->writable_bytes(), rest.front().in);
      taken.emplace_back(rest.front(), chain->ticket());
      rest.pop_front();
    }
    if (!keep) return ring.rewind(mark);
    published = rest;
    for (const auto& one : taken) {
      held.push_back(one);
      order.push_back(one.first.id);
    }
  }

  // Any one that it holds.
  void device_gives() {
    if (held.empty()) return;
    const auto at = static_cast<std::ptrdiff_t>(pick(held.size()));
    const auto [buffer, ticket] = held[static_cast<std::size_t>(at)];
    held.erase(held.begin() + at);
    const auto bytes = static_cast<std::uint32_t>(pick(buffer.in + 1));
    ring.give(ticket, bytes);
    if (!in_order) return given.push_back({buffer.id, bytes});
    done[buffer.id] = bytes;
    for (; !order.empty() && done.contains(order.front()); order.pop_front()) {
      given.push_back({order.front(), done[order.front()]});
      done.erase(order.front());
    }
  }

  void device_publishes() {
    static_cast<void>(ring.publish());
    for (; !given.empty(); given.pop_front()) expected.push_back(given.front());
  }

  void driver_reaps() {
    for (auto want = pick(4) + 1; want != 0; --want) {
      const auto used = driver.poll();
      ASSERT_EQ(used.has_value(), !expected.empty());
      if (!used) break;
      ASSERT_EQ(used->id, expected.front().id);
      ASSERT_EQ(used->length, expected.front().length);
      expected.pop_front();
      ++finished;
    }
  }

  void step() {
    switch (pick(6)) {
      case 0:
        return driver_adds();
      case 1:
        return driver_publishes();
      case 2:
        return device_takes();
      case 3:
        return device_gives();
      case 4:
        return device_publishes();
      case 5:
        return driver_reaps();
    }
  }

  FakeDriver driver;
  R ring;
  const bool in_order;
  std::mt19937 random;
  const std::unique_ptr<Chain> chain = std::make_unique<Chain>();
  std::deque<Added> added, published;           // by the driver
  std::vector<std::pair<Added, Ticket>> held;   // by the device
  std::deque<testing::Used> given, expected;    // given in order of giving; visible
  std::map<std::uint16_t, std::uint32_t> done;  // IN_ORDER: given early
  std::deque<std::uint16_t> order;              // IN_ORDER: taken
  std::uint64_t finished = 0;
};

template <class R>
void against_model(const DriverConfig& config, unsigned seed, unsigned steps) {
  SCOPED_TRACE(::testing::Message() << "size " << config.size << " start " << config.start
                                    << " wrap " << config.start_wrap << " seed " << seed);
  RingModel<R> model{config, seed};
  for (unsigned step = 0; step < steps && !::testing::Test::HasFatalFailure(); ++step) model.step();
  EXPECT_GT(model.finished, steps / 50);
  EXPECT_EQ(model.ring.fault(), Fault::none);
}

TEST(SplitRing, FollowsTheModelAcrossTheWrap) {
  for (const std::uint32_t size : {1u, 2u, 4u, 8u}) {
    for (const unsigned start : {0u, 65530u, 65533u, 65535u}) {
      for (const auto extra : {std::uint64_t{0}, feature::event_idx, feature::in_order}) {
        against_model<SplitRing>(
            {.size = size, .features = plain | extra, .start = static_cast<std::uint16_t>(start)},
            size + start, 3000);
      }
    }
  }
}

TEST(PackedRing, FollowsTheModelAcrossTheWrap) {
  for (const std::uint32_t size : {1u, 2u, 3u, 4u, 5u, 7u, 8u}) {
    for (std::uint32_t start = 0; start < size; start += 1 + size / 3) {
      for (const bool wrap : {true, false}) {
        for (const auto extra : {std::uint64_t{0}, feature::event_idx, feature::in_order}) {
          against_model<PackedRing>({.size = size,
                                     .packed = true,
                                     .features = plain | extra,
                                     .start = static_cast<std::uint16_t>(start),
                                     .start_wrap = wrap},
                                    size + start, 3000);
        }
      }
    }
  }
}

TEST(SplitRing, WorksAtTheLargestSize) {
  against_model<SplitRing>({.size = 32768, .start = 40000}, 1, 20000);
}
TEST(PackedRing, WorksAtTheLargestSize) {
  against_model<PackedRing>({.size = 32768, .packed = true, .start = 32760}, 1, 20000);
  against_model<PackedRing>({.size = 32767, .packed = true, .start = 32760}, 2, 20000);
}

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

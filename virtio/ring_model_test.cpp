// Both rings against a reference model, at every start near the wrap, for small sizes.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>

#include "virtio/packed_ring.hpp"
#include "virtio/split_ring.hpp"
#include "virtio/testing/open_ring.hpp"

namespace millrace::virtio {
namespace {

using testing::DriverConfig;
using testing::FakeDriver;
using testing::Layout;
using testing::open_ring;
using testing::plain;

// Random takes, rewinds, gives in random order and publishes. The model: buffers come in the order
// in which they were added, and what is given comes back with its length, in publish order.
template <class R>
struct RingModel {
  struct Added {
    std::uint16_t id;
    std::uint32_t out, in;
    bool one_piece;
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
    const auto layout = pick(3) == 0 ? Layout::indirect : Layout::direct;
    const auto id = driver.add(out, in, layout);
    const bool one_piece = layout == Layout::direct && outs + ins == 1;
    if (id) added.push_back({*id, outs * 3, ins * 5, one_piece});
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

  // It takes some of the usual ones, and gives each at once, or later.
  void device_fills() {
    with_cursor(ring, [this](auto& cursor) { fill(cursor); });
  }

  template <class Cursor>
  void fill(Cursor& cursor) {
    const bool writable = pick(3) != 0;
    const auto before = cursor.place();
    std::vector<Added> taken;
    bool gave = false;
    for (auto want = pick(4) + 1; want != 0; --want) {
      const Segment room = cursor.next(writable);
      const bool fits = !published.empty() && published.front().one_piece &&
                        (published.front().in != 0) == writable;
      ASSERT_EQ(room.size, !fits ? 0 : writable ? 5 : 3);
      if (!fits) break;
      ASSERT_EQ(room.guest_address, FakeDriver::data_address + (writable ? 512 : 0));
      if (pick(4) == 0) break;  // it thinks better of it
      const Ticket ticket = cursor.take();
      ASSERT_EQ(ticket.id(), published.front().id);
      ++filled;
      order.push_back(ticket.id());
      taken.push_back(published.front());
      if (pick(2) == 0) {
        held.emplace_back(published.front(), ticket);
      } else {
        gave = true;
        const auto bytes = static_cast<std::uint32_t>(pick(6));
        cursor.give(ticket, bytes);
        was_given(ticket.id(), bytes);
      }
      published.pop_front();
    }
    if (gave || taken.empty() || pick(2) == 0) return;
    cursor.go_back(before);
    for (; !taken.empty(); taken.pop_back()) {
      published.push_front(taken.back());
      held.pop_back();
      order.pop_back();
      ++went_back;
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
    was_given(buffer.id, bytes);
  }

  void was_given(std::uint16_t id, std::uint32_t bytes) {
    if (!in_order) return given.push_back({id, bytes});
    done[id] = bytes;
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
    switch (pick(7)) {
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
      case 6:
        return device_fills();
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
  std::uint64_t finished = 0, filled = 0, went_back = 0;
};

// Answers how often a cursor went back.
template <class R>
std::uint64_t against_model(const DriverConfig& config, unsigned seed, unsigned steps) {
  SCOPED_TRACE(::testing::Message() << "size " << config.size << " start " << config.start
                                    << " wrap " << config.start_wrap << " seed " << seed);
  RingModel<R> model{config, seed};
  for (unsigned step = 0; step < steps && !::testing::Test::HasFatalFailure(); ++step) model.step();
  EXPECT_GT(model.finished, steps / 60);
  EXPECT_NE(model.filled, 0u);
  EXPECT_EQ(model.ring.fault(), Fault::none);
  return model.went_back;
}

TEST(SplitRing, FollowsTheModelAcrossTheWrap) {
  std::uint64_t went_back = 0;
  for (const std::uint32_t size : {1u, 2u, 4u, 8u}) {
    for (const unsigned start : {0u, 65530u, 65533u, 65535u}) {
      for (const auto extra : {std::uint64_t{0}, feature::event_idx, feature::in_order}) {
        went_back += against_model<SplitRing>(
            {.size = size, .features = plain | extra, .start = static_cast<std::uint16_t>(start)},
            size + start, 3000);
      }
    }
  }
  EXPECT_NE(went_back, 0u);
}

TEST(PackedRing, FollowsTheModelAcrossTheWrap) {
  std::uint64_t went_back = 0;
  for (const std::uint32_t size : {1u, 2u, 3u, 4u, 5u, 7u, 8u}) {
    for (std::uint32_t start = 0; start < size; start += 1 + size / 3) {
      for (const bool wrap : {true, false}) {
        for (const auto extra : {std::uint64_t{0}, feature::event_idx, feature::in_order}) {
          went_back += against_model<PackedRing>({.size = size,
                                                  .packed = true,
                                                  .features = plain | extra,
                                                  .start = static_cast<std::uint16_t>(start),
                                                  .start_wrap = wrap},
                                                 size + start, 3000);
        }
      }
    }
  }
  EXPECT_NE(went_back, 0u);
}

TEST(SplitRing, WorksAtTheLargestSize) {
  static_cast<void>(against_model<SplitRing>({.size = 32768, .start = 40000}, 1, 20000));
}
TEST(PackedRing, WorksAtTheLargestSize) {
  static_cast<void>(
      against_model<PackedRing>({.size = 32768, .packed = true, .start = 32760}, 1, 20000));
  static_cast<void>(
      against_model<PackedRing>({.size = 32767, .packed = true, .start = 32760}, 2, 20000));
}

}  // namespace
}  // namespace millrace::virtio

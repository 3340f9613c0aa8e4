// The inflight region: a successor finds exactly what its predecessor had taken and not given back.
// Crashes are enumerated: after every single store to shared memory, the memory is copied, and a
// fresh ring is opened on the copy.
#include "virtio/inflight.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "virtio/packed_ring.hpp"
#include "virtio/shared.hpp"
#include "virtio/split_ring.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using base::le16;
using testing::DriverConfig;
using testing::FakeDriver;
using testing::Layout;

template <class R>
constexpr bool is_packed = std::is_same_v<R, PackedRing>;

// A queue with its region, and copies of both.
template <class R>
class Rig {
 public:
  using Part = std::conditional_t<is_packed<R>, wire::InflightPacked, wire::InflightSplit>;
  struct Snapshot {
    std::vector<std::byte> rings, region;
  };

  explicit Rig(const DriverConfig& config) : config_{config}, driver{config} {
    const auto bytes = InflightRegion::size_for(1, config.size, is_packed<R>);
    mapping_ = *base::Mapping::anonymous(bytes);
    region = *InflightRegion::attach(mapping_, 0, 1, config.size, is_packed<R>);
  }
  Part* part() {
    if constexpr (is_packed<R>) {
      return region->packed(0, config_.size);
    } else {
      return region->split(0, config_.size);
    }
  }
  base::Result<R, Fault> open() { return R::open(driver.setup(), *driver.memory(), part()); }
  R opened() {
    auto ring = open();
    EXPECT_TRUE(ring.has_value()) << name_of(ring ? Fault::none : ring.error());
    return *std::move(ring);
  }
  Snapshot save() const {
    const auto& rings = driver.memory()->regions()[0];
    Snapshot out;
    out.rings.assign(rings.mapping->data(), rings.mapping->data() + rings.size);
    out.region.assign(mapping_->data(), mapping_->data() + mapping_->size());
    return out;
  }
  void load(const Snapshot& from) {
    std::memcpy(driver.memory()->regions()[0].mapping->data(), from.rings.data(),
                from.rings.size());
    std::memcpy(mapping_->data(), from.region.data(), from.region.size());
  }
  std::uint16_t add(std::size_t descriptors = 1, Layout layout = Layout::direct) {
    const std::vector<testing::Buffer> out(descriptors, {FakeDriver::data_address, 1});
    const auto id = driver.add(out, {}, layout);
    EXPECT_TRUE(id.has_value());
    static_cast<void>(driver.publish());
    return id.value_or(0);
  }

 private:
  DriverConfig config_;
  std::shared_ptr<const base::Mapping> mapping_;

 public:
  FakeDriver driver;
  std::shared_ptr<InflightRegion> region;
};

template <class R>
class InflightTest : public ::testing::Test {
 protected:
  static DriverConfig config(std::uint32_t size, std::uint16_t start) {
    return {.size = size,
            .packed = is_packed<R>,
            .start = is_packed<R> ? static_cast<std::uint16_t>(start % size) : start};
  }
  static std::vector<std::uint16_t> take_all(R& ring, std::vector<Ticket>* tickets = nullptr) {
    std::vector<std::uint16_t> ids;
    const auto chain = std::make_unique<Chain>();
    while (ring.take(*chain) == Take::chain) {
      ids.push_back(chain->ticket().id());
      if (tickets != nullptr) tickets->push_back(chain->ticket());
    }
    EXPECT_EQ(ring.fault(), Fault::none) << name_of(ring.fault());
    return ids;
  }
};

using Rings = ::testing::Types<SplitRing, PackedRing>;
TYPED_TEST_SUITE(InflightTest, Rings);

TYPED_TEST(InflightTest, FreshRegionIsNoCrash) {
  for (const auto start : {0u, 3u, 65535u}) {
    Rig<TypeParam> rig{this->config(4, static_cast<std::uint16_t>(start))};
    const auto id = rig.add();
    auto ring = rig.opened();
    EXPECT_EQ(ring.resubmits(), 0u);
    EXPECT_EQ(this->take_all(ring), std::vector{id});
  }
}

TYPED_TEST(InflightTest, ResubmitsInTheOrderTaken) {
  Rig<TypeParam> rig{this->config(8, 65533)};
  auto ring = rig.opened();
  std::vector<Ticket> tickets;
  for (unsigned i = 0; i < 6; ++i) rig.add();
  const auto ids = this->take_all(ring, &tickets);
  ring.give(tickets[2], 0);
  ring.give(tickets[4], 0);
  static_cast<void>(ring.publish());
  EXPECT_TRUE(rig.driver.poll());
  EXPECT_TRUE(rig.driver.poll());
  const auto later = rig.add();  // published, not taken when we died

  auto successor = rig.opened();
  EXPECT_EQ(successor.resubmits(), 4u);
  EXPECT_TRUE(successor.arm());
  std::vector<Ticket> again;
  EXPECT_EQ(this->take_all(successor, &again),
            (std::vector{ids[0], ids[1], ids[3], ids[5], later}));
  for (const auto& ticket : again) successor.give(ticket, 0);
  static_cast<void>(successor.publish());
  for (unsigned i = 0; i < 5; ++i) EXPECT_TRUE(rig.driver.poll());
  EXPECT_EQ(rig.driver.outstanding(), 0u);
  EXPECT_EQ(rig.opened().resubmits(), 0u);
}

TYPED_TEST(InflightTest, RewoundBuffersAreNotInFlight) {
  Rig<TypeParam> rig{this->config(8, 65533)};
  auto ring = rig.opened();
  const auto first = rig.add();
  std::vector<Ticket> tickets;
  EXPECT_EQ(this->take_all(ring, &tickets), std::vector{first});
  const Mark mark = ring.mark();
  const auto second = rig.add(), third = rig.add(2);
  EXPECT_EQ(this->take_all(ring), (std::vector{second, third}));
  ring.give(tickets[0], 0);  // an older one is given between mark and rewind
  static_cast<void>(ring.publish());
  ring.rewind(mark);
  EXPECT_TRUE(rig.driver.poll());

  auto successor = rig.opened();
  EXPECT_EQ(successor.resubmits(), 0u);
  EXPECT_EQ(this->take_all(successor), (std::vector{second, third}));
  auto next = rig.opened();
  EXPECT_EQ(next.resubmits(), 2u);
  const Mark start = next.mark();
  EXPECT_EQ(this->take_all(next), (std::vector{second, third}));
  next.rewind(start);  // also those of a predecessor
  EXPECT_EQ(this->take_all(next), (std::vector{second, third}));
  EXPECT_EQ(rig.opened().resubmits(), 2u);
}

TYPED_TEST(InflightTest, RefusesNonsenseAndNeverReadsOutside) {
  std::mt19937 random{7};
  unsigned refused = 0;
  for (unsigned round = 0; round < 3000; ++round) {
    Rig<TypeParam> rig{this->config(4, 65535)};
    {
      auto ring = rig.opened();
      rig.add();
      rig.add(2);
      std::vector<Ticket> tickets;
      this->take_all(ring, &tickets);
      ring.give(tickets[round % 2], 0);
      if (round % 3 != 0) static_cast<void>(ring.publish());
    }
    const auto bytes = InflightRegion::size_for(1, 4, is_packed<TypeParam>);
    auto* raw = reinterpret_cast<std::byte*>(rig.part());
    for (unsigned i = random() % 4 + 1; i != 0; --i) {
      raw[random() % bytes] = static_cast<std::byte>(random() % 3 == 0 ? random() : random() % 5);
    }
    auto ring = rig.open();
    if (!ring) {
      EXPECT_EQ(ring.error(), Fault::inflight_bad);
      ++refused;
      continue;
    }
    const auto chain = std::make_unique<Chain>();
    std::vector<Ticket> tickets;
    while (ring->take(*chain) == Take::chain) tickets.push_back(chain->ticket());
    EXPECT_LE(tickets.size(), 4u);
    for (const auto& ticket : tickets) ring->give(ticket, 0);
    static_cast<void>(ring->publish());
  }
  EXPECT_GT(refused, 100u);
}

#ifdef MILLRACE_CRASH_POINTS
// Runs a workload; after every store of the device, what a successor on a copy of the memory finds
// must be what the driver is owed: every buffer that it published and that is not used yet, once.
template <class R>
class Crashes {
 public:
  Crashes(const DriverConfig& config, unsigned seed) : live_{config}, copy_{config}, random_{seed} {
    current_ = this;
  }
  ~Crashes() { current_ = nullptr; }

  void run(unsigned steps) {
    crash_point = [] { current_->crash(); };
    auto ring = live_.opened();
    const auto chain = std::make_unique<Chain>();
    std::vector<Ticket> held;
    for (unsigned step = 0; step < steps && !::testing::Test::HasFailure(); ++step) {
      crash_point = nullptr;
      while (random_() % 3 != 0 && live_.driver.free_descriptors() >= 2) {
        const std::size_t count = random_() % 2 + 1;
        const bool indirect = random_() % 3 == 0;
        const auto id = live_.add(count, indirect ? Layout::indirect : Layout::direct);
        published_[id] = indirect ? 1 : count;
      }
      crash_point = [] { current_->crash(); };
      fill(ring, held);
      const Mark mark = ring.mark();
      const auto before = held.size();
      for (unsigned want = random_() % 4; want != 0 && ring.take(*chain) == Take::chain; --want) {
        held.push_back(chain->ticket());
      }
      if (random_() % 4 == 0) {
        ring.rewind(mark);
        held.resize(before);
      }
      std::shuffle(held.begin(), held.end(), random_);
      for (auto want = random_() % (held.size() + 1); want != 0; --want) {
        ring.give(held.back(), 0);
        held.pop_back();
      }
      static_cast<void>(ring.publish());
      if (random_() % 8 == 0) {  // a planned restart in between
        ring = live_.opened();
        held.clear();
      }
      crash_point = nullptr;
      while (const auto used = live_.driver.poll()) published_.erase(used->id);
    }
    EXPECT_GT(points_, steps);
    EXPECT_GT(filled_, 0u);
  }

 private:
  // Takes some in the shortest way, and gives each at once, or later.
  void fill(R& ring, std::vector<Ticket>& held) {
    typename R::AccountedCursor cursor{ring};
    for (auto want = random_() % 3; want != 0 && cursor.next(false).size != 0; --want) {
      const Ticket ticket = cursor.take();
      ++filled_;
      if (random_() % 2 == 0) {
        held.push_back(ticket);
      } else {
        cursor.give(ticket, 0);
      }
    }
  }
  // What the driver sees as used, from the ring alone.
  std::set<std::uint16_t> used_now() {
    std::set<std::uint16_t> out;
    auto& driver = live_.driver;
    if constexpr (!is_packed<R>) {
      // The driver reaped all before this step, so what is new counts from there.
      for (auto at = reaped(); at != driver.used()->index.host(); ++at) {
        out.insert(
            static_cast<std::uint16_t>(driver.used_ring()[at % driver.setup().size].id.host()));
      }
    } else {
      const auto size = driver.setup().size;
      PackedPlace at = packed_reaped();
      for (std::size_t n = 0; n < published_.size(); ++n) {
        const auto flags = driver.packed_ring()[at.index].flags.host();
        const bool a = (flags & wire::descriptor_available) != 0;
        const bool u = (flags & wire::descriptor_used) != 0;
        if (a != at.wrap || u != at.wrap) break;
        const auto id = driver.packed_ring()[at.index].id.host();
        out.insert(id);
        at.advance(static_cast<std::uint32_t>(published_.at(id)), size);
      }
    }
    return out;
  }
  std::uint16_t reaped() const { return live_.driver.used_place().index; }
  PackedPlace packed_reaped() const { return live_.driver.used_place(); }

  void crash() {
    ++points_;
    auto* const hook = std::exchange(crash_point, nullptr);
    const auto used = used_now();
    copy_.load(live_.save());
    auto ring = copy_.open();
    ASSERT_TRUE(ring.has_value()) << name_of(ring.error()) << " at point " << points_;
    std::multiset<std::uint16_t> found, owed;
    const auto chain = std::make_unique<Chain>();
    std::vector<Ticket> tickets;
    while (ring->take(*chain) == Take::chain) {
      found.insert(chain->ticket().id());
      tickets.push_back(chain->ticket());
    }
    ASSERT_EQ(ring->fault(), Fault::none) << name_of(ring->fault()) << " at point " << points_;
    for (const auto& [id, count] : published_) {
      if (!used.contains(id)) owed.insert(id);
    }
    ASSERT_EQ(found, owed) << "at point " << points_;
    // The successor gives one at a time: nothing of the predecessor's last batch may show through.
    for (std::size_t i = 0; i < tickets.size(); ++i) {
      ring->give(tickets[i], 7);
      static_cast<void>(ring->publish());
      ASSERT_EQ(copy_.visible(used.size() + i + 1, packed_reaped(), published_),
                used.size() + i + 1)
          << "at point " << points_;
    }
    crash_point = hook;
  }

  struct Copy : Rig<R> {
    using Rig<R>::Rig;
    // How many used buffers a driver sees from `at` on, looking at no more than one too many.
    std::size_t visible(std::size_t want, PackedPlace at,
                        const std::map<std::uint16_t, std::size_t>& counts) {
      auto& guest = this->driver;
      if constexpr (!is_packed<R>) {
        return static_cast<std::uint16_t>(guest.used()->index.host() - at.index);
      } else {
        for (std::size_t n = 0; n <= want; ++n) {
          const auto& slot = guest.packed_ring()[at.index];
          const bool a = (slot.flags.host() & wire::descriptor_available) != 0;
          const bool u = (slot.flags.host() & wire::descriptor_used) != 0;
          if (a != at.wrap || u != at.wrap || n == counts.size()) return n;
          const auto found = counts.find(slot.id.host());
          if (found == counts.end()) return want + 100;
          at.advance(static_cast<std::uint32_t>(found->second), guest.setup().size);
        }
        return want + 1;
      }
    }
  };

  static inline thread_local Crashes* current_ = nullptr;
  Rig<R> live_;
  Copy copy_;
  std::mt19937 random_;
  std::map<std::uint16_t, std::size_t> published_;  // not reaped: ring slots, by id
  std::uint64_t points_ = 0, filled_ = 0;
};

TYPED_TEST(InflightTest, EveryStoreMayBeTheLast) {
  for (const std::uint32_t size : {2u, 4u, 8u}) {
    for (const auto start : {0u, 3u, 65533u, 65535u}) {
      for (unsigned seed = 0; seed < 2; ++seed) {
        SCOPED_TRACE(::testing::Message() << size << " from " << start << " seed " << seed);
        auto config = this->config(size, static_cast<std::uint16_t>(start));
        if (seed == 1) config.features |= feature::in_order;
        Crashes<TypeParam> crashes{config, seed};
        crashes.run(60);
        if (this->HasFailure()) return;
      }
    }
  }
}
#endif

TEST(InflightRegion, KnowsItsSizes) {
  EXPECT_EQ(InflightRegion::size_for(1, 128, false), 2112u);  // 16 + 128 * 16, to 64
  EXPECT_EQ(InflightRegion::size_for(2, 3, true), 2 * 128u);
  EXPECT_EQ(InflightRegion::size_for(0, 128, false), 0u);
  EXPECT_EQ(InflightRegion::size_for(65535, 128, false), 0u);
  EXPECT_EQ(InflightRegion::size_for(1, 0, false), 0u);
  EXPECT_EQ(InflightRegion::size_for(1, 32769, true), 0u);
}

TEST(InflightRegion, RefusesWhatDoesNotFit) {
  const auto mapping = *base::Mapping::anonymous(3 * 2112);
  const auto attach = [&](std::uint64_t offset, std::uint32_t queues) {
    return InflightRegion::attach(mapping, offset, queues, 128, false).has_value();
  };
  EXPECT_TRUE(attach(0, 3));
  EXPECT_TRUE(attach(2112, 2));
  EXPECT_FALSE(attach(2112, 3));
  EXPECT_FALSE(attach(~0ull, 1));
  EXPECT_FALSE(attach(4, 1));
  EXPECT_FALSE(attach(0, 0));
  const auto region = *InflightRegion::attach(mapping, 0, 3, 128, false);
  EXPECT_NE(region->split(2, 128), nullptr);
  EXPECT_EQ(region->split(3, 128), nullptr);
  EXPECT_EQ(region->split(0, 256), nullptr);
  EXPECT_EQ(region->packed(0, 128), nullptr);
}

}  // namespace
}  // namespace millrace::virtio

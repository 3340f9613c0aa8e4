// A transmit queue whose frames a device reads after their delivery.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>

#include "net/testing/device_rig.hpp"
#include "net/testing/fakes.hpp"
#include "net/tx_worker.hpp"
#include "virtio/inflight.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::net {
namespace {

using virtio::testing::FakeDriver;
using vswitch::Completion;
using vswitch::Packet;

struct LendingRing {
  bool packed, in_order, tracked;
  // Buffers come back in the order in which they were taken.
  [[nodiscard]] bool keeps_order() const { return in_order || !tracked; }
};
const auto lending_rings =
    ::testing::Values(LendingRing{false, false, false}, LendingRing{false, false, true},
                      LendingRing{false, true, false}, LendingRing{false, true, true},
                      LendingRing{true, false, false}, LendingRing{true, false, true},
                      LendingRing{true, true, false}, LendingRing{true, true, true});
std::string name_of_ring(const ::testing::TestParamInfo<LendingRing>& info) {
  return std::string{info.param.packed ? "Packed" : "Split"} +
         (info.param.in_order ? "InOrder" : "") + (info.param.tracked ? "Tracked" : "");
}

// A queue of 16 buffers on a reactor that does not run, and a switch that holds what it is told to.
struct Lending : ::testing::TestWithParam<LendingRing> {
  static constexpr std::uint32_t ring_size = 16, frame_bytes = 200, header = 12;

  Lending()
      : driver{{.size = ring_size,
                .packed = GetParam().packed,
                .features = virtio::feature::version_1 |
                            (GetParam().in_order ? virtio::feature::in_order : 0) |
                            (GetParam().packed ? virtio::feature::ring_packed : 0)}} {
    if (GetParam().tracked) {
      const auto bytes = virtio::InflightRegion::size_for(2, ring_size, GetParam().packed);
      region = *base::Mapping::anonymous(bytes);
    }
    for (auto& each : free) each = driver.allocate(header + frame_bytes);
    open();
    bridge.hook = [this](std::span<Packet> packets) {
      for (const Packet& packet : packets) hold_or_not(packet);
    };
  }
  ~Lending() override {
    while (!receipts.empty()) release();
    worker->detached(testing::still_reactor());
  }
  // Also one that takes over from a worker that is no more.
  void open() {
    auto start = driver.start(1, true);
    const auto place = driver.used_place();
    if (GetParam().packed) start.ring.base = place.index | (place.wrap ? 0x8000u : 0u);
    if (region) {
      start.inflight = *virtio::InflightRegion::attach(region, 0, 2, ring_size, GetParam().packed);
    }
    worker = std::make_unique<TxWorker>(*virtio::Queue::open(std::move(start)), driver.features(),
                                        5, SwitchSides{&side, 1});
    worker->attached(testing::still_reactor());
  }
  void hold_or_not(const Packet& packet) {
    numbers.push_back(std::to_integer<unsigned>(packet.header[20]));
    if (choose ? !choose() : !hold) return;
    const auto receipt =
        packet.completion == nullptr ? Completion::refused : packet.completion->hold(packet.token);
    if (receipt == Completion::refused) {
      ++refused;
      return;
    }
    lender = packet.completion, ++held;
    receipts.push_back(receipt);
    holds.push_back(numbers.back());
  }
  void lend(bool lends) {
    auto fresh = std::make_unique<Loans>(worker->queue());
    worker->set_lending(lends, fresh);
  }
  // Frames are numbered.
  void add(unsigned count) {
    for (unsigned i = 0; i < count; ++i, ++sent) {
      const auto buffer = free.back();
      free.pop_back();
      driver.store(buffer + header + 20, static_cast<std::uint8_t>(sent));
      const auto id = driver.add({{buffer, header + frame_bytes}}, {});
      ASSERT_TRUE(id);
      added[*id] = {buffer, sent % 256};
    }
    static_cast<void>(driver.publish());
  }
  void send(unsigned count = 1) {
    add(count);
    run();
  }
  void run() {
    for (int i = 0; i < 100 && worker->poll(); ++i) {
    }
  }
  void release(std::size_t which = 0) {
    lender->release(receipts.at(which));
    receipts.erase(receipts.begin() + static_cast<std::ptrdiff_t>(which));
    holds.erase(holds.begin() + static_cast<std::ptrdiff_t>(which));
  }
  // Numbers of the frames whose buffers the driver has back.
  std::vector<unsigned> back() {
    std::vector<unsigned> out;
    while (const auto used = driver.poll()) {
      const auto [buffer, number] = added.at(used->id);
      free.push_back(buffer);
      out.push_back(number);
    }
    return out;
  }
  std::size_t used() { return back().size(); }

  FakeDriver driver;
  std::shared_ptr<const base::Mapping> region;  // null: nobody is told what is in flight
  testing::FakeBridge bridge;
  vswitch::PortCounters counters;
  SwitchSide side{&bridge, &counters};
  std::unique_ptr<TxWorker> worker;
  struct Added {
    std::uint64_t buffer;
    unsigned number;
  };
  std::vector<std::uint64_t> free = std::vector<std::uint64_t>(ring_size);  // buffers
  std::map<unsigned, Added> added;                                          // by id
  unsigned sent = 0;
  std::vector<unsigned> numbers;  // of frames that the switch got
  bool hold = true;
  std::function<bool()> choose;  // for each frame, in its place
  unsigned held = 0, refused = 0;
  Completion* lender = nullptr;
  std::vector<std::uint32_t> receipts;
  std::vector<unsigned> holds;  // numbers of the frames that they are for
};
INSTANTIATE_TEST_SUITE_P(Rings, Lending, lending_rings, name_of_ring);

using Numbers = std::vector<unsigned>;

TEST_P(Lending, IsOffAtFirst) {
  send(3);
  EXPECT_EQ(held, 0u);
  EXPECT_EQ(refused, 3u);
  EXPECT_EQ(back(), (Numbers{0, 1, 2}));
}

TEST_P(Lending, ABufferComesBackWhenItsHolderReleasesIt) {
  lend(true);
  send();
  EXPECT_EQ(held, 1u);
  EXPECT_EQ(used(), 0u);
  EXPECT_FALSE(worker->may_rest());
  EXPECT_FALSE(worker->nothing_new());  // whatever its driver does
  release();
  EXPECT_FALSE(worker->may_rest());
  EXPECT_TRUE(worker->arm());  // there is something to publish
  run();
  EXPECT_EQ(used(), 1u);
  EXPECT_TRUE(worker->may_rest());
  EXPECT_TRUE(worker->nothing_new());
}

// What is not held is given back at once, past what is; or waits for it.
TEST_P(Lending, BuffersComeBackAsTheyAreFreeOrInTheirOrder) {
  const bool ordered = GetParam().keeps_order();
  lend(true);
  send(2);
  hold = false;
  send();
  EXPECT_EQ(back(), ordered ? Numbers{} : Numbers{2});
  release(1);
  run();
  EXPECT_EQ(back(), ordered ? Numbers{} : Numbers{1});
  send();
  EXPECT_EQ(back(), ordered ? Numbers{} : Numbers{3});
  hold = true;
  send();
  release();
  run();
  EXPECT_EQ(back(), ordered ? (Numbers{0, 1, 2, 3}) : Numbers{0});
  release();
  run();
  EXPECT_EQ(back(), Numbers{4});
  EXPECT_TRUE(worker->may_rest());
}

TEST_P(Lending, AtMostAQuarterOfTheRingIsOut) {
  const bool ordered = GetParam().keeps_order();
  lend(true);
  send(7);
  EXPECT_EQ(held, 4u);
  EXPECT_EQ(refused, 3u);
  EXPECT_EQ(used(), ordered ? 0u : 3u);
  release();
  run();
  EXPECT_EQ(back(), Numbers{0});
  send();
  EXPECT_EQ(held, 5u);
  EXPECT_EQ(used(), 0u);
}

TEST_P(Lending, APacketMayHaveSeveralHolders) {
  lend(true);
  bridge.hook = [this](std::span<Packet> packets) {
    lender = packets[0].completion;
    receipts.push_back(lender->hold(packets[0].token));
    lender->release(receipts.back());  // over before the next part is held
    receipts.back() = lender->hold(packets[0].token);
    receipts.push_back(lender->hold(packets[0].token));
    holds = {0, 0};
  };
  send();
  release();
  run();
  EXPECT_EQ(used(), 0u);
  release();
  run();
  EXPECT_EQ(used(), 1u);
}

TEST_P(Lending, StoppingWaitsForWhatIsOutAndLendsNothing) {
  lend(true);
  send();
  hold = false;
  send();
  EXPECT_EQ(used(), GetParam().keeps_order() ? 0u : 1u);
  EXPECT_TRUE(worker->queue().enabled());
  worker->quiesce();
  EXPECT_FALSE(worker->drained());
  release();
  EXPECT_TRUE(worker->drained());
  run();  // also a queue that stops publishes what comes back
  EXPECT_EQ(used(), GetParam().keeps_order() ? 2u : 1u);
  EXPECT_EQ(worker->queue().position() & 0x7fff, 2u);
  worker->attached(testing::still_reactor());  // it only went to another reactor
  hold = true;
  send();
  EXPECT_EQ(held, 2u);
}

TEST_P(Lending, MemoryIsReleasedWhenNothingOfItIsOut) {
  const bool ordered = GetParam().keeps_order();
  lend(true);
  send();
  EXPECT_FALSE(worker->memory_released());
  send(2);  // is copied meanwhile
  EXPECT_EQ(refused, 2u);
  EXPECT_EQ(used(), ordered ? 0u : 2u);
  release();
  EXPECT_TRUE(worker->memory_released());
  send();
  EXPECT_EQ(held, 2u);
  EXPECT_EQ(used(), ordered ? 3u : 1u);
}

TEST_P(Lending, TurnedOffItLendsNothingMore) {
  lend(true);
  send();
  lend(false);
  send();
  EXPECT_EQ(refused, 1u);
  release();
  run();
  EXPECT_EQ(used(), 2u);
  send();
  EXPECT_EQ(used(), 1u);
}

// A driver that fills its ring behind a loan waits for it, and goes on.
TEST_P(Lending, AFullRingGoesOnWhenItsLoansEnd) {
  const bool ordered = GetParam().keeps_order();
  lend(true);
  send();
  hold = false;
  send(ring_size - 1);
  EXPECT_EQ(used(), ordered ? 0u : ring_size - 1);
  release();
  run();
  EXPECT_EQ(used(), ordered ? ring_size : 1);
  send(ring_size);
  EXPECT_EQ(used(), ring_size);
}

struct SplitLending : Lending {};
INSTANTIATE_TEST_SUITE_P(Rings, SplitLending,
                         ::testing::Values(LendingRing{false, false, false},
                                           LendingRing{false, false, true},
                                           LendingRing{false, true, false}),
                         name_of_ring);

// What is lent, made available again as it is: a fault, where the ring knows what it holds.
TEST_P(SplitLending, ADriverThatPublishesALentBufferAgainHarmsItselfAlone) {
  lend(true);
  send();
  auto& index = driver.available()->index;
  driver.available_ring()[index.host() % ring_size] = driver.available_ring()[index.host() - 1];
  index = base::le16{static_cast<std::uint16_t>(index.host() + 1)};
  run();
  const bool known = GetParam().tracked || GetParam().in_order;
  EXPECT_EQ(worker->queue().fault(), known ? virtio::Fault::head_in_flight : virtio::Fault::none);
  EXPECT_EQ(held, known ? 1u : 2u);
  while (!receipts.empty()) release();
  run();
  EXPECT_TRUE(worker->drained());
  EXPECT_EQ(driver.used()->index.host(), held);
}

// Random traffic against a model of what is out. Now and then the worker is gone, as with a kill:
// whoever goes on takes just what the driver has not got back, in its order.
TEST_P(Lending, FollowsTheModelAndLeavesASuccessorWhatWasNotUsed) {
  const bool ordered = GetParam().keeps_order();
  std::mt19937 random{GetParam().packed * 4u + GetParam().in_order * 2u + GetParam().tracked};
  const auto pick = [&random](std::size_t below) { return random() % below; };
  std::deque<unsigned> outstanding;  // frames whose buffers the driver has not got back
  const auto reap = [&] {
    for (const unsigned number : back()) {
      ASSERT_EQ(std::ranges::count(holds, number), 0) << "it is lent";
      const auto found = std::ranges::find(outstanding, number);
      ASSERT_NE(found, outstanding.end());
      ASSERT_TRUE(!ordered || found == outstanding.begin());
      outstanding.erase(found);
    }
    // What is not waited for is there; a frame that nobody took yet is the driver's.
    const auto waits = [&](unsigned number) { return std::ranges::count(holds, number) != 0; };
    const bool whole = ordered ? outstanding.empty() || waits(outstanding.front())
                               : std::ranges::all_of(outstanding, waits);
    ASSERT_TRUE(whole);
  };
  lend(true);
  unsigned kills = 0, lent = 0;
  for (unsigned step = 0; step < 4000; ++step) {
    choose = [&] { return pick(3) == 0; };
    switch (pick(6)) {
      default: {
        const auto count = static_cast<unsigned>(pick(ring_size - outstanding.size() + 1));
        for (unsigned i = 0; i < count; ++i) outstanding.push_back((sent + i) % 256);
        add(count);
        break;
      }
      case 3:
      case 4:
        if (!receipts.empty()) release(pick(receipts.size()));
        break;
      case 5:
        lend(pick(4) != 0);
    }
    run();
    reap();
    ASSERT_LE(receipts.size(), ring_size / 4);
    lent = std::max(lent, static_cast<unsigned>(receipts.size()));
    if (pick(40) != 0) continue;
    ++kills;
    worker.reset();
    receipts.clear(), holds.clear(), numbers.clear();
    choose = [] { return false; };
    open();
    run();
    ASSERT_EQ(numbers, (Numbers{outstanding.begin(), outstanding.end()}));
    reap();
    ASSERT_TRUE(outstanding.empty());
    lend(true);
  }
  EXPECT_GT(kills, 50u);
  EXPECT_EQ(lent, ring_size / 4);
  EXPECT_EQ(worker->queue().fault(), virtio::Fault::none);
}

class LendingDevice : public testing::NetDeviceTest {
 protected:
  static constexpr std::uint64_t features = virtio::feature::version_1;
  static constexpr std::uint32_t ring_size = 16;

  // Its transmit queue, which a successor is told of where it is `tracked`.
  void start_sender(bool tracked) {
    ring = std::make_unique<testing::GuestRing>(features, ring_size);
    auto start = ring->start(1, true);
    memory = start.memory;
    if (tracked) {
      const auto bytes = virtio::InflightRegion::size_for(2, ring_size, false);
      start.inflight =
          *virtio::InflightRegion::attach(*base::Mapping::anonymous(bytes), 0, 2, ring_size, false);
    }
    bool done = false;
    device_->start_queue(std::move(start), [&done](base::Result<void> result) {
      EXPECT_TRUE(result) << (result ? "" : result.error().message);
      done = true;
    });
    ASSERT_TRUE(until([&] { return done; }));
  }
  // The queue knows of it when this is over.
  void lend(bool lends) {
    device_->lend(lends);
    bool done = false;
    pool_->post(
        device_->queue_status(1).reactor, [](base::Reactor&) noexcept {}, [&done] { done = true; });
    ASSERT_TRUE(until([&] { return done; }));
  }
  // Whether a frame that it sends now may be held.
  bool lends() {
    const auto before = forwarded();
    ring->send({testing::Bytes(12, 0), testing::make_frame({})});
    ring->kick();
    EXPECT_TRUE(until([&] { return ring->take_used().has_value(); }));
    EXPECT_EQ(forwarded(), before + 1);
    return fabric_->bridges[device_->queue_status(1).reactor].last_may_be_held;
  }

  std::unique_ptr<testing::GuestRing> ring;
  std::shared_ptr<const virtio::GuestMemory> memory;
};

TEST_F(LendingDevice, AQueueLendsWhileItShall) {
  make({.name = "a"});
  device_->set_features(features);
  for (const bool tracked : {true, false}) {
    device_->lend(false);
    start_sender(tracked);
    EXPECT_FALSE(lends());
    lend(true);
    EXPECT_TRUE(lends());
    lend(false);
    EXPECT_FALSE(lends());
    lend(true);
    stop(1);
    start_sender(tracked);  // a queue that starts later is told, too
    EXPECT_TRUE(lends());
    stop(1);
  }
  close();
}

TEST_F(LendingDevice, TellsWhatMemoryItsGuestHas) {
  make({.name = "a"});
  device_->set_features(features);
  std::vector<std::shared_ptr<const virtio::GuestMemory>> heard;
  const auto hear = [&heard](const auto& told) { heard.push_back(told); };
  device_->on_memory(hear);
  EXPECT_TRUE(heard.empty());
  device_->set_connected(true);
  start_sender(false);
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard.back(), memory);
  device_->on_memory(hear);  // whoever comes later hears of what is there
  EXPECT_EQ(heard.size(), 2u);
  const auto other = *virtio::GuestMemory::build({memory->regions()[0]});
  bool done = false;
  device_->set_memory(other, [&done](base::Result<void>) { done = true; });
  ASSERT_TRUE(until([&] { return done; }));
  ASSERT_EQ(heard.size(), 3u);
  EXPECT_EQ(heard.back(), other);
  stop(1);
  device_->set_connected(false);
  ASSERT_EQ(heard.size(), 4u);
  EXPECT_EQ(heard.back(), nullptr);
  close();
}

}  // namespace
}  // namespace millrace::net

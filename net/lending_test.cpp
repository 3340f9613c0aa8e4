// A transmit queue whose frames a device reads after their delivery.
#include <gtest/gtest.h>

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

// A queue of 16 buffers on a reactor that does not run, and a switch that holds what it is told to.
struct Lending : ::testing::TestWithParam<bool> {
  explicit Lending(std::uint64_t more = 0)
      : driver{{.size = 16,
                .packed = GetParam(),
                .features = virtio::feature::version_1 | more |
                            (GetParam() ? virtio::feature::ring_packed : 0)}} {
    worker = std::make_unique<TxWorker>(*virtio::Queue::open(driver.start(1, true)),
                                        driver.features(), 5, SwitchSides{&side, 1});
    worker->attached(testing::still_reactor());
    bridge.hook = [this](std::span<Packet> packets) {
      for (const Packet& packet : packets) {
        if (!hold) continue;
        if (packet.completion == nullptr) {
          ++refused;
          continue;
        }
        const auto receipt = packet.completion->hold(packet.token);
        receipt == Completion::refused ? ++refused : (lender = packet.completion, ++held);
        if (receipt != Completion::refused) receipts.push_back(receipt);
      }
    };
  }
  ~Lending() override {
    while (!receipts.empty()) release();
    worker->detached(testing::still_reactor());
  }
  void lend(bool lends) {
    auto fresh = std::make_unique<Loans>(worker->queue());
    worker->set_lending(lends, fresh);
  }
  void send(unsigned count = 1) {
    for (unsigned i = 0; i < count; ++i) {
      EXPECT_TRUE(driver.add({{driver.allocate(212), 212}}, {}));
    }
    static_cast<void>(driver.publish());
    run();
  }
  void run() {
    for (int i = 0; i < 100 && worker->poll(); ++i) {
    }
  }
  void release(std::size_t at = 0) {
    lender->release(receipts.at(at));
    receipts.erase(receipts.begin() + static_cast<std::ptrdiff_t>(at));
  }
  // Buffers that the driver has back, in whatever order.
  std::size_t used() {
    std::size_t count = 0;
    while (driver.poll()) ++count;
    return count;
  }

  FakeDriver driver;
  testing::FakeBridge bridge;
  vswitch::PortCounters counters;
  SwitchSide side{&bridge, &counters};
  std::unique_ptr<TxWorker> worker;
  bool hold = true;
  unsigned held = 0, refused = 0;
  Completion* lender = nullptr;
  std::vector<std::uint32_t> receipts;
};
INSTANTIATE_TEST_SUITE_P(Formats, Lending, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

TEST_P(Lending, IsOffAtFirst) {
  send(3);
  EXPECT_EQ(held, 0u);
  EXPECT_EQ(refused, 3u);
  EXPECT_EQ(used(), 3u);
}

TEST_P(Lending, ABufferComesBackWhenItsHolderReleasesIt) {
  lend(true);
  send(2);
  EXPECT_EQ(held, 2u);
  EXPECT_EQ(used(), 0u);
  EXPECT_FALSE(worker->may_rest());
  EXPECT_FALSE(worker->nothing_new());  // whatever its driver does
  hold = false;
  send();  // what is not held is given back at once, past those that are
  EXPECT_EQ(used(), 1u);
  release(1);
  EXPECT_FALSE(worker->may_rest());
  EXPECT_TRUE(worker->arm());  // there is something to publish
  run();
  EXPECT_EQ(used(), 1u);
  release();
  run();
  EXPECT_EQ(used(), 1u);
  EXPECT_TRUE(worker->may_rest());
  EXPECT_TRUE(worker->nothing_new());
}

TEST_P(Lending, AtMostAQuarterOfTheRingIsOut) {
  lend(true);
  send(7);
  EXPECT_EQ(held, 4u);
  EXPECT_EQ(refused, 3u);
  EXPECT_EQ(used(), 3u);
  release();
  run();
  send();
  EXPECT_EQ(held, 5u);
  EXPECT_EQ(used(), 1u);
}

TEST_P(Lending, APacketMayHaveSeveralHolders) {
  lend(true);
  bridge.hook = [this](std::span<Packet> packets) {
    lender = packets[0].completion;
    receipts.push_back(lender->hold(packets[0].token));
    lender->release(receipts.back());  // over before the next part is held
    receipts.back() = lender->hold(packets[0].token);
    receipts.push_back(lender->hold(packets[0].token));
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
  EXPECT_TRUE(worker->queue().enabled());
  worker->quiesce();
  EXPECT_FALSE(worker->drained());
  release();
  EXPECT_TRUE(worker->drained());
  run();  // also a queue that stops publishes what comes back
  EXPECT_EQ(used(), 1u);
  worker->attached(testing::still_reactor());  // it only went to another reactor
  send();
  EXPECT_EQ(held, 2u);
}

TEST_P(Lending, MemoryIsReleasedWhenNothingOfItIsOut) {
  lend(true);
  send();
  EXPECT_FALSE(worker->memory_released());
  send(2);  // is copied meanwhile
  EXPECT_EQ(refused, 2u);
  EXPECT_EQ(used(), 2u);
  release();
  EXPECT_TRUE(worker->memory_released());
  send();
  EXPECT_EQ(held, 2u);
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
}

struct OrderedLending : Lending {
  OrderedLending() : Lending{virtio::feature::in_order} {}
};
INSTANTIATE_TEST_SUITE_P(Formats, OrderedLending, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

TEST_P(OrderedLending, AnOrderedRingLendsNothing) {
  lend(true);
  send(3);
  EXPECT_EQ(refused, 3u);
  EXPECT_EQ(used(), 3u);
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

TEST_F(LendingDevice, ATrackedQueueLendsWhileItShall) {
  make({.name = "a"});
  device_->set_features(features);
  start_sender(true);
  EXPECT_FALSE(lends());
  lend(true);
  EXPECT_TRUE(lends());
  lend(false);
  EXPECT_FALSE(lends());
  lend(true);
  stop(1);
  start_sender(true);  // a queue that starts later is told, too
  EXPECT_TRUE(lends());
  stop(1);
  close();
}

// A successor would take the first buffers that were not used for those that are out.
TEST_F(LendingDevice, AQueueThatNobodyTracksLendsNothing) {
  make({.name = "a"});
  device_->set_features(features);
  device_->lend(true);
  start_sender(false);
  EXPECT_FALSE(lends());
  stop(1);
  start_sender(true);
  EXPECT_TRUE(lends());
  stop(1);
  start_sender(false);
  EXPECT_FALSE(lends());
  stop(1);
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

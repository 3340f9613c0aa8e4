// A queue goes from one reactor to another while its driver uses it.
#include <gtest/gtest.h>

#include "virtio/dirty_log.hpp"
#include "virtio/testing/echo_device.hpp"

namespace millrace::virtio {
namespace {

using testing::FakeDriver;

class DeviceMove : public testing::EchoDeviceTest {
 protected:
  unsigned owner(unsigned index = 0) { return device_->queue_status(index).reactor; }
  base::Result<void> move(unsigned reactor, unsigned index = 0) {
    return ask([&](auto done) { device_->move_queue(index, reactor, std::move(done)); });
  }
  static std::string refused(const base::Result<void>& result) {
    return result ? std::string{} : result.error().message;
  }
};

INSTANTIATE_TEST_SUITE_P(Formats, DeviceMove, ::testing::Bool(),
                         [](const auto& format) { return format.param ? "Packed" : "Split"; });

TEST_P(DeviceMove, GoesOnWhereItWas) {
  ASSERT_TRUE(start());
  const unsigned first = owner();
  send(3);
  expect_served(3);
  ASSERT_TRUE(move(1 - first));
  EXPECT_EQ(owner(), 1 - first);
  send(3);
  expect_served(3);
  const auto status = device_->queue_status(0);
  EXPECT_EQ(status.chains, 6u);  // counters go along
  EXPECT_EQ(device_->shared.attached, 2);
  EXPECT_EQ(device_->shared.detached, 1);
  ASSERT_TRUE(move(1 - first));  // there already
  EXPECT_EQ(device_->shared.attached, 2);
  ASSERT_TRUE(move(first));
  send(2);
  expect_served(2);
  EXPECT_EQ(stop(), GetParam() ? 0x0000'0000u : 8u);  // 8 buffers: once around a packed ring
}

TEST_P(DeviceMove, EveryBufferComesBackOnceWhileItMoves) {
  ASSERT_TRUE(start());
  unsigned moves = 0, sent = 0, reaped = 0;
  bool moving = false;
  until([&] {
    if (!moving && moves < 200) {
      moving = true;
      device_->move_queue(0, 1 - owner(), [&](base::Result<void> result) {
        EXPECT_TRUE(result);
        moving = false, ++moves;
      });
    }
    while (driver_.free_descriptors() > 0 && sent < 100'000) {
      EXPECT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
      ++sent;
    }
    driver_.submit();
    while (driver_.poll()) ++reaped;
    return moves == 200 && reaped == sent;
  });
  EXPECT_EQ(driver_.outstanding(), 0u);
  EXPECT_EQ(device_->queue_status(0).chains, sent);
  EXPECT_GT(sent, 200u);
  stop();
}

TEST_P(DeviceMove, NoKickAndNoCallIsLost) {
  ASSERT_TRUE(start());
  for (unsigned i = 0; i < 50; ++i) {
    ASSERT_FALSE(driver_.poll());
    static_cast<void>(driver_.called());
    static_cast<void>(driver_.arm());
    bool moved = false;
    device_->move_queue(0, 1 - owner(), [&](base::Result<void>) { moved = true; });
    send();  // its kick may reach either reactor, or none of them
    until([&] { return moved; });
    until([&] { return driver_.called(); });
    ASSERT_TRUE(driver_.poll());
    if (i % 5 == 0) {  // the new owner sleeps, and is woken
      const auto& counters = pool_->at(owner()).counters();
      const auto sleeps = counters.sleeps.get();
      pool_->post(
          owner(), [](base::Reactor&) {}, [] {});  // it may be asleep since before
      until([&] { return counters.sleeps.get() > sleeps; });
    }
  }
  stop();
}

TEST_P(DeviceMove, WaitsForWhatIsInFlight) {
  ASSERT_TRUE(start());
  const unsigned first = owner();
  device_->shared.hold = true;
  send(2);
  until([&] { return device_->queue_status(0).chains == 2; });
  bool moved = false;
  device_->move_queue(0, 1 - first, [&](base::Result<void>) { moved = true; });
  until([&] { return device_->shared.quiesced != 0; });
  send(2);  // stay in the ring
  for (unsigned i = 0; i < 5; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(moved);
  EXPECT_EQ(device_->shared.detached, 0);
  device_->shared.hold = false;
  until([&] { return moved; });
  expect_served(4);
  stop();
}

// Whatever a session asks for while a queue moves has its turn.
TEST_P(DeviceMove, KeepsToTheOrderOfRequests) {
  ASSERT_TRUE(start());
  const unsigned first = owner();
  device_->hooks.clear();
  std::vector<std::string> answers;
  const auto said = [&](const char* what) {
    return [&answers, what](const base::Result<void>& result) {
      answers.push_back(result ? what : std::string{what} + ": " + result.error().message);
    };
  };
  const auto regions = driver_.memory()->regions();
  auto memory = *GuestMemory::build({regions.begin(), regions.end()});
  const std::weak_ptr<const GuestMemory> watched = memory;
  const auto bitmap = *base::Mapping::anonymous(1 << 16);
  device_->move_queue(0, 1 - first, said("move"));
  device_->enable_queue(0, false, said("disable"));
  device_->move_queue(0, first, said("back"));
  device_->enable_queue(0, true, said("enable"));
  device_->set_memory(std::move(memory), said("memory"));
  device_->set_log(std::make_shared<DirtyLog>(bitmap), said("log"));
  device_->move_queue(0, 1 - first, said("again"));
  device_->stop_queue(0, [&](std::uint32_t) { answers.emplace_back("stop"); });
  device_->move_queue(0, first, said("late"));
  until([&] { return answers.size() == 9; });
  // Those of one queue; answers for all queues come when they have all agreed.
  std::vector<std::string> ordered;
  for (const auto& each : answers) {
    if (each != "memory" && each != "log") ordered.push_back(each);
  }
  EXPECT_EQ(ordered, (std::vector<std::string>{"move", "disable", "back", "enable", "again", "stop",
                                               "late: queue 0 is not started"}));
  const auto to = [&](unsigned from) {
    return "moving " + std::to_string(from) + " to " + std::to_string(1 - from);
  };
  const auto at = [](unsigned reactor) { return "moved to " + std::to_string(reactor); };
  EXPECT_EQ(device_->hooks, (std::vector<std::string>{
                                to(first), at(1 - first), "disabled", to(1 - first), at(first),
                                "enabled", to(first), at(1 - first), "stopping", "stopped"}));
  EXPECT_TRUE(watched.expired());
  ASSERT_TRUE(start());
  stop();
}

TEST_P(DeviceMove, DescriptorsGoAlong) {
  ASSERT_TRUE(start());
  FakeDriver other;
  ASSERT_TRUE(move(1 - owner()));
  auto fds = other.start();
  ASSERT_TRUE(ask([&](auto done) { device_->set_kick(0, std::move(fds.kick), std::move(done)); }));
  ASSERT_TRUE(ask([&](auto done) { device_->set_call(0, std::move(fds.call), std::move(done)); }));
  ASSERT_TRUE(move(1 - owner()));
  for (unsigned i = 0; i < 10; ++i) {
    static_cast<void>(driver_.arm());
    ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
    static_cast<void>(driver_.publish());
    other.kick();
    until([&] { return other.called(); });
    expect_served(1);
  }
  stop();
}

TEST_P(DeviceMove, AFaultIsToldOnceWhereverTheQueueIs) {
  std::vector<Fault> faults;
  device_->on_fault([&](unsigned, Fault fault) { faults.push_back(fault); });
  ASSERT_TRUE(start());
  ASSERT_TRUE(move(1 - owner()));
  EXPECT_TRUE(faults.empty());
  device_->shared.poison = true;
  driver_.kick();
  until([&] { return !faults.empty(); });
  EXPECT_EQ(device_->queue_status(0).fault, Fault::request_malformed);
  ASSERT_TRUE(move(1 - owner()));  // a poisoned queue moves, and stays poisoned
  send();
  for (unsigned i = 0; i < 5; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_EQ(device_->queue_status(0).chains, 0u);
  stop();
  EXPECT_EQ(faults, std::vector{Fault::request_malformed});
}

TEST_P(DeviceMove, RefusesInOneLine) {
  EXPECT_EQ(refused(move(1, 7)), "there is no queue 7");
  EXPECT_EQ(refused(move(2)), "there is no reactor 2");
  EXPECT_EQ(refused(move(1)), "queue 0 is not started");
  ASSERT_TRUE(start());
  device_->shared.can_move = false;
  EXPECT_EQ(refused(move(1 - owner())), "queue 0 stays where it was started");
  stop();
}

TEST_P(DeviceMove, StartsWhereItIsPinned) {
  for (unsigned reactor : {1u, 1u, 0u, 1u}) {
    device_->pin_queue(0, reactor);
    EXPECT_TRUE(device_->queue_status(0).pinned);
    ASSERT_TRUE(start());
    EXPECT_EQ(owner(), reactor);
    stop();
  }
  device_->pin_queue(0, std::nullopt);
  EXPECT_FALSE(device_->queue_status(0).pinned);
  ASSERT_TRUE(start());
  EXPECT_EQ(owner(), 0u);
  stop();
}

// What else has to happen is asked on the old owner before and after the queue is quiet, and told
// on the new one.
TEST_P(DeviceMove, AsksTheHandoverOnBothReactors) {
  struct Steps final : base::Handover {
    explicit Steps(testing::EchoWorker::Shared& s) : shared{s} {}
    bool may_pause() noexcept override {
      quiesced_early = quiesced_early || shared.quiesced != 0;
      return allow_pause;
    }
    bool may_leave() noexcept override {
      detached_early = detached_early || shared.detached != 0;
      return allow_leave;
    }
    void arrived() noexcept override { attached_first = shared.attached == 2; }
    testing::EchoWorker::Shared& shared;
    std::atomic<bool> allow_pause{false}, allow_leave{false};
    std::atomic<bool> quiesced_early{false}, detached_early{false}, attached_first{false};
  };
  ASSERT_TRUE(start());
  const auto steps = std::make_shared<Steps>(device_->shared);
  device_->handover = steps;
  bool moved = false;
  device_->move_queue(0, 1 - owner(), [&](base::Result<void>) { moved = true; });
  send(2);
  expect_served(2);  // it is served until it may pause
  steps->allow_pause = true;
  until([&] { return device_->shared.quiesced != 0; });
  for (unsigned i = 0; i < 5; ++i) loop_.step(std::chrono::milliseconds{1});
  EXPECT_FALSE(moved);
  EXPECT_EQ(device_->shared.detached, 0);
  steps->allow_leave = true;
  until([&] { return moved; });
  EXPECT_FALSE(steps->quiesced_early || steps->detached_early);
  EXPECT_TRUE(steps->attached_first);
  device_->handover.reset();
  stop();
}

}  // namespace
}  // namespace millrace::virtio

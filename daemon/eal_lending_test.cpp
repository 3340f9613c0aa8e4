// Payloads that a device reads where they lie: who has them back, and when.
#include <gtest/gtest.h>

#include "daemon/eal.hpp"
#include "switch/ethdev_queue.hpp"
#include "switch/region_swap.hpp"
#include "switch/testing/null_nic.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

class Lender final : public Completion {
 public:
  std::uint32_t hold(std::uint32_t token) noexcept override {
    held.fetch_add(1);
    return token;
  }
  void release(std::uint32_t receipt) noexcept override {
    EXPECT_EQ(receipt, 7u);
    released.fetch_add(1);
  }
  std::atomic<unsigned> held{0}, released{0};
};

// A queue on a running reactor, to a device that is done with what it was sent when the test says.
class EthdevLending : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto started = daemon::start_eal(128);
    if (!started) GTEST_SKIP() << started.error().message;
    nic = std::make_unique<NullNic>();
    port = board.port({});
    queue = std::make_unique<EthdevQueue>(nic->queue(512), board.pool().at(0),
                                          board.fabric().bridge(0), board.counters(port, 0), port);
    describe(frame, packet);
    packet.completion = &lender;
    packet.token = 7;
    swap_to_frame();
    start();
  }
  void TearDown() override {
    if (!queue) return;
    if (!stopped) on(&EthdevQueue::stop);
    on(&EthdevQueue::forget_device);
    nic.reset();
    on(&EthdevQueue::abandon);
    EXPECT_EQ(lender.held, lender.released);
  }

  void on(void (EthdevQueue::*does)() noexcept) {
    board.on(0, [&] { (queue.get()->*does)(); });
    stopped = does == &EthdevQueue::stop || (stopped && does != &EthdevQueue::start);
  }
  // A device is lent nothing before it showed that it sends, and again after it was slow, which it
  // may seem to be here at any time but while nothing is out.
  void start() {
    on(&EthdevQueue::start);
    const auto before = lent();
    board.wait([&] {
      send();
      return lent() != before;
    });
    wait_until_all_is_back();
  }
  void send(std::size_t count = 1) {
    board.on(0, [&] {
      const std::array<const Packet*, 2> burst{&packet, &packet};
      queue->deliver(std::span{burst}.first(count));
    });
  }
  void wait_until_all_is_back() {
    board.wait([&] { return lender.released == lender.held; });
  }
  // Some rounds of the reactor.
  void rounds() {
    for (int i = 0; i < 20; ++i) board.on(0, [] {});
  }
  void swap(std::shared_ptr<const DmaRegions> regions) {
    swapped = false;
    board.pool().post(
        0, std::make_unique<RegionSwap>(*queue, std::move(regions), [this] { swapped = true; }));
  }
  void swap_to_frame() {
    const auto begin = reinterpret_cast<std::uintptr_t>(frame.data());
    swap(std::make_shared<const DmaRegions>(
        std::vector<DmaRegion>{{begin, begin + frame.size(), 0x1'0000'0000, {}}}));
    board.wait([this] { return swapped; });
  }
  unsigned lent() {  // since the queue was made
    return lender.held;
  }

  Switchboard board;
  std::unique_ptr<NullNic> nic;
  PortId port = no_port;
  Lender lender;
  const Bytes frame = plain_frame(everybody, mac(1), 5, 1400);
  Packet packet;
  std::unique_ptr<EthdevQueue> queue;
  bool stopped = false, swapped = false;
};

TEST_F(EthdevLending, WhatIsLentComesBackWhenTheDeviceIsDoneWithIt) {
  NullNic::done = false;
  const auto before = lent();
  send(2);
  rounds();
  EXPECT_EQ(lent(), before + 2);
  EXPECT_EQ(lender.released, before);
  NullNic::done = true;
  wait_until_all_is_back();
  EXPECT_EQ(queue->figures().zero_copy_packets.get(), lent());
  EXPECT_EQ(queue->figures().zero_copy_done.get(), lent());
  EXPECT_EQ(queue->figures().zero_copy_bytes.get(), lent() * (1400 - Packet::header_max));
}

// As one does whose standby carries now: its device has a last burst to send.
TEST_F(EthdevLending, AQueueThatStoppedLooksAfterWhatItLent) {
  NullNic::done = false;
  send();
  on(&EthdevQueue::stop);
  rounds();
  EXPECT_EQ(lender.released + 1, lender.held);
  NullNic::done = true;
  wait_until_all_is_back();
  start();
  NullNic::done = false;
  send();
  on(&EthdevQueue::stop);
  on(&EthdevQueue::start);  // while that is out
  rounds();
  EXPECT_EQ(lender.released + 1, lender.held);
  NullNic::done = true;
  wait_until_all_is_back();
}

TEST_F(EthdevLending, ADeviceThatIsClosedIsNotAskedAndKeepsNothing) {
  NullNic::done = false;
  send();
  on(&EthdevQueue::stop);
  on(&EthdevQueue::forget_device);
  const auto asked = NullNic::asked.load();
  NullNic::done = true;
  rounds();
  EXPECT_EQ(NullNic::asked, asked);
  EXPECT_EQ(lender.released + 1, lender.held);
  nic.reset();
  on(&EthdevQueue::abandon);
  EXPECT_EQ(lender.released, lender.held);
  EXPECT_TRUE(queue->done_with(queue->given()));
}

TEST_F(EthdevLending, MemoryIsSwappedAtOnceAndAnsweredWhenTheDeviceIsDoneWithTheOld) {
  NullNic::done = false;
  send();
  swap(std::make_shared<const DmaRegions>());
  rounds();
  EXPECT_FALSE(swapped);
  const auto before = lent();
  send();
  NullNic::done = true;
  board.wait([this] { return swapped; });
  board.wait([this] {
    send();
    return queue->figures().copied_unmapped.get() != 0;
  });
  EXPECT_EQ(lent(), before);
  EXPECT_EQ(lender.released, lender.held);
}

TEST_F(EthdevLending, AClosedDeviceAnswersASwapThatWaits) {
  NullNic::done = false;
  send();
  swap(std::make_shared<const DmaRegions>());
  on(&EthdevQueue::stop);
  on(&EthdevQueue::forget_device);
  nic.reset();
  EXPECT_FALSE(swapped);
  on(&EthdevQueue::abandon);
  board.wait([this] { return swapped; });
}

}  // namespace
}  // namespace millrace::vswitch

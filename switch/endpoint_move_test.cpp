// Endpoints go from reactor to reactor under traffic: every frame arrives once, and in the order of
// its flow.
#include "switch/endpoint_move.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using testing::Bytes;
using testing::everybody;
using testing::mac;
using testing::plain_frame;
using testing::Switchboard;

constexpr unsigned reactors = 3;
constexpr Mac receiver_mac{2, 0, 0, 1, 0, 0};
constexpr std::size_t sequence_at = 16;  // in a frame

// What of each flow has been delivered: of each sender to the receiver, and to everybody. Written
// by whoever owns the flow's endpoint.
struct Deliveries {
  [[nodiscard]] std::uint64_t of(unsigned sender) const {
    return received[2 * sender].load(std::memory_order_acquire) +
           received[2 * sender + 1].load(std::memory_order_acquire);
  }
  std::array<std::atomic<std::uint64_t>, 2 * reactors> received{};
  std::atomic<std::uint64_t> wrong{0};
};

// Expects the frames of each flow one after the other, and only on the reactor that owns it.
class OrderedPort final : public Port {
 public:
  explicit OrderedPort(Deliveries& deliveries) : deliveries_{deliveries} {}

  void deliver(std::span<const Packet* const> packets) noexcept override {
    if (std::this_thread::get_id() != owner) ++deliveries_.wrong;
    for (const Packet* packet : packets) {
      const auto flow = 2 * std::to_integer<unsigned>(packet->header[11]) +
                        std::to_integer<unsigned>(packet->header[0] & std::byte{1});
      std::uint64_t sequence = 0;
      std::memcpy(&sequence, packet->header.data() + sequence_at, sizeof(sequence));
      auto& received = deliveries_.received.at(flow);
      if (sequence != received.load(std::memory_order_relaxed)) ++deliveries_.wrong;
      received.store(sequence + 1, std::memory_order_release);
    }
  }

  std::thread::id owner;

 private:
  Deliveries& deliveries_;
};

// Sends numbered frames from its reactor, to the receiver and to everybody in turn: a bounded
// number ahead of what was delivered, and of what the reactors that only get the copies of floods
// have taken in. No link is ever full, so nothing may be lost.
class Pump final : public base::Poller {
 public:
  Pump(Shard& shard, PortId port, unsigned number, const Deliveries& deliveries)
      : shard_{shard},
        port_{port},
        number_{number},
        deliveries_{deliveries},
        frame_{plain_frame(receiver_mac, mac(number))} {}

  bool poll() noexcept override {
    if (stopping.load() || sent.load() - deliveries_.of(number_) > ahead_max) return false;
    if (sent.load() - noted_at_ > ahead_max) {
      if (!shard_.delivered(noted_)) return false;
      shard_.note_sent(noted_);
      noted_at_ = sent.load();
    }
    for (std::size_t i = 0; i < packets_.size(); ++i) {
      testing::describe(frame_, packets_[i]);
      const bool flood = i == 2;
      if (flood) std::copy(everybody.begin(), everybody.end(), header(i));
      const std::uint64_t sequence = flood ? floods_++ : unicasts_++;
      std::memcpy(header(i) + sequence_at, &sequence, sizeof(sequence));
    }
    sent += packets_.size();
    shard_.forward(port_, packets_);
    return true;
  }
  bool arm() noexcept override { return false; }
  void disarm() noexcept override {}
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override { return 100'000; }

  std::atomic<bool> stopping{false};
  std::atomic<std::uint64_t> sent{0};

 private:
  std::uint8_t* header(std::size_t at) {
    return reinterpret_cast<std::uint8_t*>(packets_[at].header.data());
  }
  static constexpr std::uint64_t ahead_max = 100;
  Shard& shard_;
  const PortId port_;
  const unsigned number_;
  const Deliveries& deliveries_;
  const Bytes frame_;
  std::uint64_t unicasts_ = 0, floods_ = 0;
  std::array<std::uint64_t, Fabric::reactors_max> noted_{};  // in the links when it was noted_at_
  std::uint64_t noted_at_ = 0;
  std::array<Packet, 4> packets_;
};

class EndpointMoves : public ::testing::Test {
 protected:
  void plug(unsigned slots) {
    PortConfig config;
    config.static_macs = {receiver_mac};
    receiver_ = board_.port(config);
    for (unsigned slot = 0; slot < slots; ++slot) {
      ends_.push_back(std::make_unique<OrderedPort>(deliveries_));
      places_.push_back(slot % reactors);
      own(slot);
      board_.finish([&](Fabric::Done done) {
        board_.fabric().add_endpoint(receiver_, slot, places_[slot], ends_[slot].get(),
                                     std::move(done));
      });
    }
    for (unsigned i = 0; i < reactors; ++i) {
      senders_.push_back(board_.port({}));
      const PortId port = senders_.back();
      auto& shard = static_cast<Shard&>(board_.fabric().bridge(i));
      pumps_.push_back(std::make_unique<Pump>(shard, port, i, deliveries_));
    }
  }
  void own(unsigned slot) {
    board_.on(places_[slot], [&] { ends_[slot]->owner = std::this_thread::get_id(); });
  }
  void start() {
    for (unsigned i = 0; i < reactors; ++i) {
      board_.pool().post(
          i, [pump = pumps_[i].get()](base::Reactor& reactor) { reactor.add(*pump); }, [] {});
    }
  }
  // As a queue's device does it, with control in between.
  void move(unsigned slot, unsigned to) {
    std::shared_ptr<base::Handover> handover;
    bool given = false;
    board_.fabric().move_endpoint(receiver_, slot, to, [&](std::shared_ptr<base::Handover> got) {
      handover = std::move(got);
      given = true;
    });
    board_.wait([&] { return given; });
    bool paused = false;
    while (!paused) board_.on(places_[slot], [&] { paused = handover->may_pause(); });
    places_[slot] = to;
    own(slot);
    board_.on(to, [&] { handover->arrived(); });
    board_.finish(
        [&](Fabric::Done done) { board_.fabric().end_move(receiver_, slot, std::move(done)); });
  }
  void finish() {
    for (auto& pump : pumps_) pump->stopping = true;
    board_.wait([&] {
      for (unsigned i = 0; i < reactors; ++i) {
        if (deliveries_.of(i) != pumps_[i]->sent.load()) return false;
      }
      return true;
    });
    for (unsigned i = 0; i < reactors; ++i) {
      board_.finish([&](Fabric::Done done) {
        board_.pool().post(
            i, [pump = pumps_[i].get()](base::Reactor& reactor) { reactor.remove(*pump); },
            std::move(done));
      });
    }
    EXPECT_EQ(deliveries_.wrong, 0u);
    for (unsigned i = 0; i < reactors; ++i) {
      std::uint64_t drops = 0;
      for_each_counter(board_.counters(receiver_, i), [&](const char* name, const auto& counter) {
        if (std::string_view{name}.starts_with("drop_")) drops += counter.get();
      });
      EXPECT_EQ(drops, 0u);
      EXPECT_GT(pumps_[i]->sent.load(), 300u);
    }
    for (unsigned slot = 0; slot < ends_.size(); ++slot) {
      board_.finish([&](Fabric::Done done) {
        board_.fabric().remove_endpoint(receiver_, slot, std::move(done));
      });
    }
  }
  void until_sent(std::uint64_t more) {
    const auto before = pumps_[0]->sent.load();
    board_.wait([&] { return pumps_[0]->sent.load() >= before + more; });
  }

  Deliveries deliveries_;
  std::vector<std::unique_ptr<OrderedPort>> ends_;
  std::vector<std::unique_ptr<Pump>> pumps_;
  std::vector<unsigned> places_;  // by slot
  std::vector<PortId> senders_;   // by reactor
  Switchboard board_{reactors};
  PortId receiver_ = no_port;
};

TEST_F(EndpointMoves, NoFrameIsLostOrOvertaken) {
  plug(1);
  start();
  for (unsigned i = 0; i < 60; ++i) {
    until_sent(20);
    move(0, (places_[0] + 1 + i % 2) % reactors);
  }
  finish();
}

TEST_F(EndpointMoves, SeveralOfAPortAtOnceAndOtherChangesInBetween) {
  plug(3);
  start();
  for (unsigned i = 0; i < 20; ++i) {
    until_sent(20);
    // Two that begin together, and a port that comes and goes meanwhile.
    std::array<std::shared_ptr<base::Handover>, 2> handovers;
    unsigned given = 0;
    std::array<unsigned, 2> to{};
    for (unsigned slot = 0; slot < 2; ++slot) {
      to[slot] = (places_[slot] + 1) % reactors;
      board_.fabric().move_endpoint(receiver_, slot, to[slot],
                                    [&, slot](std::shared_ptr<base::Handover> got) {
                                      handovers[slot] = std::move(got);
                                      ++given;
                                    });
    }
    const PortId passing = board_.port({});
    board_.wait([&] { return given == 2; });
    for (unsigned slot = 0; slot < 2; ++slot) {
      bool paused = false;
      while (!paused) board_.on(places_[slot], [&] { paused = handovers[slot]->may_pause(); });
      places_[slot] = to[slot];
      own(slot);
      board_.on(to[slot], [&] { handovers[slot]->arrived(); });
    }
    board_.finish(
        [&](Fabric::Done done) { board_.fabric().remove_port(passing, std::move(done)); });
    for (unsigned slot = 0; slot < 2; ++slot) {
      board_.finish(
          [&](Fabric::Done done) { board_.fabric().end_move(receiver_, slot, std::move(done)); });
    }
  }
  finish();
}

// A flood says by which table it was sent. An old owner that did not know of the move would think
// that it is meant, beside the new one.
TEST_F(EndpointMoves, NobodySendsToTheNewOwnerBeforeTheOldOneKnows) {
  plug(1);
  std::atomic<bool> held{true}, holds{false};
  board_.pool().post(
      0,
      [&](base::Reactor&) {
        holds = true;
        while (held) std::this_thread::yield();
      },
      [] {});
  board_.wait([&] { return holds.load(); });  // the old owner takes nothing in now
  std::shared_ptr<base::Handover> handover;
  board_.fabric().move_endpoint(
      receiver_, 0, 1, [&](std::shared_ptr<base::Handover> got) { handover = std::move(got); });
  for (const unsigned other : {1u, 2u}) board_.on(other, [] {});  // what they were told is done
  EXPECT_EQ(handover, nullptr);
  held = false;
  board_.wait([&] { return handover != nullptr; });
  bool paused = false;
  while (!paused) board_.on(0, [&] { paused = handover->may_pause(); });
  board_.on(1, [&] { handover->arrived(); });
  board_.finish(
      [&](Fabric::Done done) { board_.fabric().end_move(receiver_, 0, std::move(done)); });
  board_.finish(
      [&](Fabric::Done done) { board_.fabric().remove_endpoint(receiver_, 0, std::move(done)); });
}

// Frames that came while the endpoint was nobody's, more than there is room for: the rest is
// dropped and counted.
TEST_F(EndpointMoves, WhatWaitsIsBounded) {
  auto counters = std::make_unique<PortCounters>();
  WaitingPort waiting{*counters};
  const Bytes frame = plain_frame(receiver_mac, mac(0));
  std::array<Packet, burst_max> packets;
  std::array<const Packet*, burst_max> burst;
  std::uint64_t sequence = 0;
  const auto send = [&] {
    for (std::size_t i = 0; i < burst.size(); ++i, ++sequence) {
      testing::describe(frame, packets[i]);
      std::memcpy(packets[i].header.data() + sequence_at, &sequence, sizeof(sequence));
      burst[i] = &packets[i];
    }
    waiting.deliver(burst);
  };
  constexpr auto room = ParcelPool::chunk_count;
  while (sequence < room + 5 * burst_max) send();
  EXPECT_EQ(counters->drop_link_full.get(), sequence - room);
  OrderedPort port{deliveries_};
  port.owner = std::this_thread::get_id();
  waiting.release(port);
  EXPECT_EQ(deliveries_.received[0], room);
  sequence = room;
  send();  // passed on at once
  EXPECT_EQ(deliveries_.received[0], room + burst_max);
  EXPECT_EQ(deliveries_.wrong, 0u);
}

// A sender may go once the last frame that it sent to another reactor has been delivered, and not
// before; what others send meanwhile does not hold it.
TEST_F(EndpointMoves, ASenderLeavesWhenItsFramesHaveArrived) {
  plug(1);
  auto& shard = static_cast<Shard&>(board_.fabric().bridge(1));
  const auto handover = board_.fabric().move_sender(1);
  bool may = true;
  std::atomic<bool> held{true}, holds{false};
  board_.pool().post(
      0,
      [&](base::Reactor&) {
        holds = true;
        while (held) std::this_thread::yield();
      },
      [] {});
  board_.wait([&] { return holds.load(); });  // the receiver's reactor does nothing now
  const Bytes frame = plain_frame(receiver_mac, mac(0));
  Packet packet;
  board_.on(1, [&] {
    testing::describe(frame, packet);
    std::memset(packet.header.data() + sequence_at, 0, sizeof(std::uint64_t));
    shard.forward(senders_[1], {&packet, 1});
    may = handover->may_leave();
  });
  EXPECT_FALSE(may);
  held = false;
  while (!may) board_.on(1, [&] { may = handover->may_leave(); });
  EXPECT_EQ(deliveries_.received[0], 1u);
  board_.finish(
      [&](Fabric::Done done) { board_.fabric().remove_endpoint(receiver_, 0, std::move(done)); });
}

}  // namespace
}  // namespace millrace::vswitch

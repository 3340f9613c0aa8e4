// A guest's queues go from reactor to reactor under traffic.
#include "net/testing/device_rig.hpp"
#include "net/testing/two_guests.hpp"

namespace millrace::net {
namespace {

using testing::Bytes;
using testing::FrameSpec;
using testing::Guest;
using testing::TwoGuests;
using virtio::wire::NetHeader;

class QueueMoves : public TwoGuests {
 protected:
  static unsigned owner(Guest& guest, unsigned queue) {
    return guest.device->queue_status(queue).reactor;
  }
  // Moves one queue to the next reactor; `done` counts.
  void move(Guest& guest, unsigned queue, unsigned& done) {
    move_to(guest, queue, (owner(guest, queue) + 1) % pool_->size(), done);
  }
  static void move_to(Guest& guest, unsigned queue, unsigned reactor, unsigned& done) {
    guest.device->move_queue(queue, reactor, [&done](base::Result<void> result) {
      EXPECT_TRUE(result) << (result ? "" : result.error().message);
      ++done;
    });
  }
  // Sends the next numbered frame while there is room on both sides; answers whether it went.
  bool pump(Guest& from, const Bytes& to, std::uint64_t& sent, std::uint64_t received) {
    while (from.tx.take_used()) --on_the_way_;
    if (on_the_way_ > 60 || sent - received > 60) return false;
    const FrameSpec spec{.payload = 60 + static_cast<unsigned>(sent % 1000)};
    Bytes frame = testing::make_frame(spec);
    std::memcpy(frame.data() + frame.size() - sizeof(sent), &sent, sizeof(sent));
    send(from, to, frame, spec);
    ++sent, ++on_the_way_;
    return true;
  }
  // Expects the next frames, in their order, and posts as many buffers again.
  void reap(Guest& guest, std::uint64_t& received) {
    while (const auto got = guest.rx.take_used()) {
      std::uint64_t number = 0;
      ASSERT_GE(got->bytes.size(), sizeof(NetHeader) + 60);
      std::memcpy(&number, got->bytes.data() + got->bytes.size() - sizeof(number), sizeof(number));
      ASSERT_EQ(number, received);
      ++received;
      guest.rx.post({1526});
    }
  }
  std::uint64_t drops(const Guest& guest) {
    std::uint64_t sum = 0;
    for (unsigned i = 0; i < pool_->size(); ++i) {
      vswitch::for_each_counter(fabric_->counters(guest.device->port(), i),
                                [&](const char* name, const base::Counter& counter) {
                                  if (std::string_view{name}.starts_with("drop_"))
                                    sum += counter.get();
                                });
    }
    return sum;
  }

  int on_the_way_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Reactors, QueueMoves, ::testing::Values(2u, 3u));

TEST_P(QueueMoves, EveryFrameArrivesOnceAndInOrder) {
  Guest a{"a", 1, virtio::feature::ring_packed}, b{"b", 2, virtio::feature::event_idx};
  plug(a), plug(b);
  const FrameSpec first{};
  send(b, a.mac, testing::make_frame(first), first);  // so that the switch knows b
  ASSERT_FALSE(receive(a).empty());
  std::uint64_t sent = 0, received = 0;
  constexpr unsigned moves = 40;
  unsigned asked = 0, done = 0;
  ASSERT_TRUE(until([&] {
    // Both ends at once now and then, and each alone.
    if (asked == done && asked < moves && sent >= 10 * asked) {
      if (asked % 3 != 1) ++asked, move(a, 1, done);
      if (asked % 3 != 2) ++asked, move(b, 0, done);
    }
    for (int i = 0; i < 20 && done < moves; ++i) {
      if (!pump(a, b.mac, sent, received)) break;
    }
    while (a.tx.take_used()) --on_the_way_;
    reap(b, received);
    return ::testing::Test::HasFailure() || (done >= moves && received == sent);
  })) << done
      << " of " << asked << " moves, " << received << " of " << sent << " frames";
  EXPECT_EQ(received, sent);
  EXPECT_GE(sent, 10u * (moves - 2));
  EXPECT_EQ(drops(b), 0u);
  // A reactor counts a burst after the guest has it.
  const auto counted = [&] {
    return a.device->status().pairs[0].tx_packets == sent &&
           b.device->status().pairs[0].rx_packets == sent;
  };
  EXPECT_TRUE(until(counted)) << a.device->status().pairs[0].tx_packets << " sent and "
                              << b.device->status().pairs[0].rx_packets << " received of " << sent;
  unplug(a), unplug(b);
}

TEST_P(QueueMoves, EndWithTheirSession) {
  Guest a{"a", 1, 0};
  plug(a);
  for (int round = 0; round < 20; ++round) {
    Guest b{"b", 2, 0};
    plug(b);
    const FrameSpec spec{};
    for (int i = 0; i < 20; ++i) send(a, Bytes(6, 0xff), testing::make_frame(spec), spec);
    unsigned done = 0;
    move(b, 0, done), move(b, 1, done), move(a, 1, done);
    unplug(b);  // its queues stop after they have moved
    ASSERT_TRUE(until([&] { return done == 3; }));
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(until([&] { return a.tx.take_used().has_value(); }));
    }
  }
  unplug(a);
}

TEST_P(QueueMoves, SwitchedOffAndOnInBetween) {
  Guest a{"a", 1, 0}, b{"b", 2, 0};
  plug(a), plug(b);
  unsigned done = 0, asked = 0;
  std::uint64_t sent = 0, received = 0;
  const auto enable = [&](bool on) {
    ++asked;
    b.device->enable_queue(0, on, [&done](base::Result<void>) { ++done; });
  };
  for (int i = 0; i < 20; ++i) {
    const unsigned here = owner(b, 0), there = (here + 1) % pool_->size();
    asked += 3;
    move_to(b, 0, there, done);
    enable(false);
    move_to(b, 0, here, done);  // while the switch does not know it
    enable(true);
    move_to(b, 0, there, done);
    ASSERT_TRUE(until([&] { return done == asked; }));
    EXPECT_EQ(owner(b, 0), there);
    for (int n = 0; n < 10; ++n) ASSERT_TRUE(pump(a, b.mac, sent, received));
    ASSERT_TRUE(until([&] {
      reap(b, received);
      return received == sent;
    }));
    while (a.tx.take_used()) --on_the_way_;
  }
  unplug(a), unplug(b);
}

using ControlMoves = testing::ControlQueueTest;

// A command that control is at work on is answered before its queue goes; the next is taken there.
// What a command asks of a receive queue that is on its way waits until it has arrived.
TEST_F(ControlMoves, CommandsAreAnsweredOnEitherReactor) {
  constexpr unsigned pairs = 2, control = 2 * pairs;
  start_all(pairs);
  const auto ask_for = [&](std::uint8_t count) {
    return command({Bytes{4, 0}, Bytes{count, 0}});  // MQ, VQ_PAIRS_SET
  };
  ASSERT_EQ(ask_for(2), 0);
  for (std::uint8_t i = 0; i < 20; ++i) {
    unsigned moved = 0;
    for (const unsigned queue : {control, 0u, 2u, 1u}) {
      const unsigned to = 1 - device_->queue_status(queue).reactor;
      device_->move_queue(queue, to, [&moved](base::Result<void> result) {
        EXPECT_TRUE(result);
        ++moved;
      });
    }
    EXPECT_EQ(ask_for(1), 0);
    EXPECT_EQ(fabric_->endpoints.size(), 1u);
    ASSERT_TRUE(until([&] { return moved == 4; }));
    EXPECT_EQ(ask_for(2), 0);
    EXPECT_EQ(fabric_->endpoints.size(), 2u);
    EXPECT_EQ(fabric_->endpoints.at(0).reactor, device_->queue_status(0).reactor);
    EXPECT_EQ(fabric_->endpoints.at(1).reactor, device_->queue_status(2).reactor);
    rings_[0]->post({1526});
    deliver(Bytes(6, 0xff));
    EXPECT_EQ(device_->status().pairs[0].rx_packets, i + 1u);
    EXPECT_TRUE(rings_[0]->take_used());
  }
  EXPECT_EQ(fabric_->senders_moved, 20);
  EXPECT_EQ(fabric_->moves_begun, fabric_->moves_ended);
  stop_all();
}

}  // namespace
}  // namespace millrace::net

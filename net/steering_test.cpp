// What a driver sets up over the control queue about received packets: RSS, hash reports, calls
// that are held back, and that all of it outlives the daemon.
#include <gtest/gtest.h>

#include "net/offload.hpp"
#include "net/rss_config.hpp"
#include "net/testing/device_rig.hpp"
#include "virtio/kept_area.hpp"

namespace millrace::net {
namespace {

using testing::Bytes, testing::FrameSpec, testing::nf::hash_report, testing::nf::notf_coal,
    testing::nf::rss;
namespace wire = virtio::wire;

Bytes le(std::uint64_t value, std::size_t size) {
  Bytes out;
  for (std::size_t i = 0; i < size; ++i) out.push_back(static_cast<std::uint8_t>(value >> 8 * i));
  return out;
}
void append(Bytes& out, const Bytes& more) {
  out.insert(out.end(), more.begin(), more.end());
}

// A command RSS_CONFIG, field by field, so that each can be wrong.
struct RssCommand {
  std::uint32_t types = hash_types_offered;
  std::uint16_t mask = 3, unclassified = 0;
  std::vector<std::uint16_t> table{1, 0, 1, 1};
  std::uint16_t transmit = 2;
  std::uint8_t key_length = 40;
  Bytes key = Bytes(40, 0x5a);

  [[nodiscard]] Bytes bytes() const {
    Bytes out{4, 1};
    append(out, le(types, 4)), append(out, le(mask, 2)), append(out, le(unclassified, 2));
    for (const auto pair : table) append(out, le(pair, 2));
    append(out, le(transmit, 2)), append(out, le(key_length, 1)), append(out, key);
    return out;
  }
};

Bytes coalescing(bool receive, std::uint32_t packets, std::uint32_t usecs) {
  Bytes out{6, static_cast<std::uint8_t>(receive ? 1 : 0)};
  append(out, le(packets, 4)), append(out, le(usecs, 4));
  return out;
}

std::shared_ptr<const vswitch::Packet> packet_of(const FrameSpec& spec) {
  const testing::OwnedPacket owned{testing::make_frame(spec), spec};
  EXPECT_LE(owned.bytes.size(), vswitch::Packet::header_max);
  return std::make_shared<const vswitch::Packet>(owned.packet);
}

class SteeringTest : public testing::ControlQueueTest {
 protected:
  // A driver's next daemon: another device, with what the one before had left.
  void restart(std::shared_ptr<const base::Mapping> memory, unsigned pairs, std::uint64_t bits) {
    stop_all();
    device_.reset();
    make({.name = "a", .pairs = pairs, .control_queue = true, .hash_report = true});
    device_->set_features(bits);
    device_->set_kept(std::make_shared<virtio::KeptArea>(std::move(memory), 0));
    start_queues(pairs, bits);
  }
};

TEST_F(SteeringTest, TheConfigurationSpaceSaysWhatThereIs) {
  start_all(4, rss | hash_report);
  EXPECT_EQ(config_space().rss_max_key_size, 40);
  EXPECT_EQ(config_space().rss_max_indirection_table_length.host(), 128);
  EXPECT_EQ(config_space().supported_hash_types.host(), 0x1ffu);
  stop_all();
  make({.name = "b", .control_queue = true});
  EXPECT_EQ(device_->features() & (rss | hash_report), 0u) << "one pair: nothing to spread over";
  EXPECT_EQ(device_->features() & notf_coal, notf_coal);
  EXPECT_EQ(config_space().rss_max_key_size, 0);
  close();
  make({.name = "c", .pairs = 4, .control_queue = true, .rss = false, .coalescing = false});
  EXPECT_EQ(device_->features() & (rss | hash_report | notf_coal), 0u);
  close();
  make({.name = "d", .pairs = 4, .hash_report = true});
  EXPECT_EQ(device_->features() & (rss | hash_report | notf_coal), 0u) << "no control queue";
  close();
}

TEST_F(SteeringTest, ATableSteersUntilPairsAreSet) {
  start_all(4, rss);
  EXPECT_EQ(fabric_->steering, nullptr);
  EXPECT_EQ(command({RssCommand{}.bytes()}), 0);
  ASSERT_NE(fabric_->steering, nullptr) << "in place before the driver sees the answer";
  EXPECT_EQ(fabric_->endpoints.size(), 4u) << "whichever pairs a table may name";
  EXPECT_EQ(fabric_->steering->mask, 3);
  EXPECT_EQ(fabric_->steering->slots[0], 1);
  EXPECT_EQ(fabric_->steering->slots[1], 0);
  RssCommand other;
  other.mask = 127, other.unclassified = 3, other.table.assign(128, 2), other.transmit = 4;
  EXPECT_EQ(command({other.bytes()}), 0);
  EXPECT_EQ(fabric_->steering->unclassified, 3);
  EXPECT_EQ(fabric_->steering->slots[127], 2);
  EXPECT_EQ(command({{4, 0, 2, 0}}), 0);
  EXPECT_EQ(fabric_->steering, nullptr) << "the device steers by itself again";
  EXPECT_EQ(fabric_->endpoints.size(), 2u);
  EXPECT_EQ(command({other.bytes()}), 0);
  for (unsigned i = 0; i < rings_.size(); ++i) stop(i);
  device_->set_features(features);
  ASSERT_TRUE(until([&] { return fabric_->steering == nullptr; })) << "the next driver's own";
  close();
}

TEST_F(SteeringTest, EveryFieldOfACommandIsChecked) {
  start_all(2, rss);
  const auto refused = [&](auto edit) {
    RssCommand bad;
    edit(bad);
    return command({bad.bytes()}) == 1;
  };
  EXPECT_TRUE(refused([](auto& c) { c.types = 0x200; }));
  EXPECT_TRUE(refused([](auto& c) { c.mask = 2, c.table.resize(3); })) << "no power of two";
  EXPECT_TRUE(refused([](auto& c) { c.mask = 255, c.table.assign(256, 0); }));
  EXPECT_TRUE(refused([](auto& c) { c.mask = 0xffff; }));
  EXPECT_TRUE(refused([](auto& c) { c.unclassified = 2; }));
  EXPECT_TRUE(refused([](auto& c) { c.table[3] = 2; }));
  EXPECT_TRUE(refused([](auto& c) { c.transmit = 0; }));
  EXPECT_TRUE(refused([](auto& c) { c.transmit = 3; }));
  EXPECT_TRUE(refused([](auto& c) { c.key_length = 41, c.key.push_back(0); }));
  EXPECT_TRUE(refused([](auto& c) { c.key.pop_back(); }));
  EXPECT_TRUE(refused([](auto& c) { c.key_length = 0, c.key.clear(); })) << "types without a key";
  const Bytes whole = RssCommand{}.bytes();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(command({Bytes(whole.begin(), whole.begin() + std::ptrdiff_t(size))}), 1) << size;
  }
  EXPECT_EQ(fabric_->steering, nullptr);
  EXPECT_EQ(command({{4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}), 1) << "no HASH_REPORT";
  EXPECT_EQ(command({coalescing(true, 1, 1)}), 1) << "no NOTF_COAL";
  EXPECT_EQ(command({{whole[0]}, Bytes(whole.begin() + 1, whole.end())}), 0) << "in pieces";
  RssCommand nothing;
  nothing.types = 0, nothing.key_length = 0, nothing.key.clear(), nothing.unclassified = 1;
  EXPECT_EQ(command({nothing.bytes()}), 0);
  EXPECT_EQ(fabric_->steering->hash->of(*packet_of({.payload = 40})).kind, 0u);
  stop_all();
}

TEST_F(SteeringTest, WithRssAloneTheControlQueueIsTheLast) {
  make({.name = "a", .pairs = 2, .control_queue = true});
  const std::uint64_t bits = (features | rss) & ~testing::nf::mq;
  device_->set_features(bits);
  start_queues(2, bits);
  EXPECT_EQ(command({RssCommand{}.bytes()}), 0);
  EXPECT_NE(fabric_->steering, nullptr);
  stop_all();
}

TEST_F(SteeringTest, AHashIsReportedInALongerHeader) {
  for (const bool packed : {false, true}) {
    for (const bool mergeable : {false, true}) {
      const std::uint64_t bits = (packed ? testing::vf::ring_packed : 0) | hash_report | rss;
      make({.name = "a", .pairs = 2, .control_queue = true, .hash_report = true});
      const std::uint64_t all =
          mergeable ? features | bits : (features | bits) & ~testing::nf::mrg_rxbuf;
      device_->set_features(all);
      start_queues(2, all);
      const FrameSpec spec{.ipv6 = packed, .udp = mergeable, .payload = 40};
      const auto packet = packet_of(spec);
      const auto got = [&]() -> wire::NetHashHeader {
        // Two small buffers where the frame may lie in both.
        for (int i = 0; i < (mergeable ? 2 : 1); ++i) rings_[0]->post({mergeable ? 70u : 400u});
        deliver(0, packet);
        const auto first = rings_[0]->take_used();
        EXPECT_TRUE(first);
        wire::NetHashHeader header{};
        std::memcpy(&header, first->bytes.data(), sizeof header);
        Bytes frame(first->bytes.begin() + sizeof header, first->bytes.end());
        EXPECT_EQ(header.header.num_buffers.host(), mergeable ? 2 : 1);
        if (mergeable) append(frame, rings_[0]->take_used()->bytes);
        EXPECT_EQ(frame, testing::make_frame(spec));
        EXPECT_EQ(header.padding.host(), 0);
        return header;
      };
      EXPECT_EQ(got().hash_report.host(), wire::net_hash_report::none) << "nothing was set up yet";
      Bytes hashing{4, 2};
      append(hashing, le(0x3f, 4)), append(hashing, Bytes(8)), append(hashing, {40});
      append(hashing, Bytes(40, 0x21));
      EXPECT_EQ(command({hashing}), 0);
      vswitch::Toeplitz::Key key;
      key.fill(0x21);
      const auto expected = vswitch::PacketHash{0x3f, key}.of(*packet);
      const auto header = got();
      EXPECT_EQ(header.hash_value.host(), expected.value);
      namespace report = wire::net_hash_report;
      EXPECT_EQ(header.hash_report.host(), packed ? (mergeable ? report::udpv6 : report::tcpv6)
                                                  : (mergeable ? report::udpv4 : report::tcpv4));
      EXPECT_EQ(fabric_->steering, nullptr) << "a hash alone steers nothing";
      EXPECT_EQ(command({RssCommand{}.bytes()}), 0);
      EXPECT_NE(got().hash_value.host(), expected.value) << "another key";
      stop_all();
      device_.reset();
    }
  }
}

TEST_F(SteeringTest, AFrameIsSentBehindTheLongerHeader) {
  start_all(2, hash_report);
  const FrameSpec spec{.payload = 40};
  const Bytes frame = testing::make_frame(spec);
  rings_[1]->send({Bytes(20, 0), frame});
  rings_[1]->kick();
  ASSERT_TRUE(until([&] { return rings_[1]->take_used().has_value(); }));
  EXPECT_EQ(forwarded(), 1u);
  const auto& bridge = fabric_->bridges[fabric_->bridges[0].count.load() == 1 ? 0 : 1];
  EXPECT_EQ(bridge.last_length, frame.size());
  EXPECT_EQ(std::memcmp(bridge.last.data(), frame.data(), frame.size()), 0);
  stop_all();
}

TEST_F(SteeringTest, CallsAreHeldBackUntilEnoughWaits) {
  start_all(2, notf_coal);
  const auto packet = packet_of({.payload = 40});
  const auto calls = [&] { return device_->queue_status(0).calls; };
  const auto deliver_some = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      rings_[0]->post({400});
      deliver(0, packet);
      EXPECT_TRUE(rings_[0]->take_used()) << "published whether the driver is called or not";
    }
  };
  deliver_some(3);
  EXPECT_EQ(calls(), 3u);
  // By number: an hour never passes in a test.
  EXPECT_EQ(command({coalescing(true, 4, 3'600'000'000u)}), 0);
  deliver_some(3);
  EXPECT_EQ(calls(), 3u);
  deliver_some(1);
  EXPECT_EQ(calls(), 4u);
  deliver_some(7);
  EXPECT_EQ(calls(), 5u);
  // What is owed is sent when the pace changes.
  EXPECT_EQ(command({coalescing(true, 0, 0)}), 0);
  EXPECT_EQ(calls(), 6u);
  deliver_some(2);
  EXPECT_EQ(calls(), 8u);
  // By time, while the reactor sleeps: the reactor's own clock wakes it.
  EXPECT_EQ(command({coalescing(true, 0, 2000)}), 0);
  deliver_some(1);
  EXPECT_TRUE(until([&] { return calls() == 9; }));
  stop_all();
}

TEST_F(SteeringTest, CallsForSentFramesAreHeldBackToo) {
  start_all(2, notf_coal);
  const auto send = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      rings_[1]->send({Bytes(12, 0), testing::make_frame({})});
      rings_[1]->kick();
      EXPECT_TRUE(until([&] { return rings_[1]->take_used().has_value(); }));
    }
  };
  const auto calls = [&] { return device_->queue_status(1).calls; };
  EXPECT_EQ(command({coalescing(false, 3, 3'600'000'000u)}), 0);
  send(2);
  EXPECT_EQ(calls(), 0u);
  send(1);
  EXPECT_TRUE(until([&] { return calls() == 1; }));
  send(1);
  EXPECT_EQ(calls(), 1u);
  // A queue that starts later keeps to it as well.
  stop(1);
  rings_[1] = std::make_unique<testing::GuestRing>(features | notf_coal, 16);
  start(1, *rings_[1], true);
  send(2);
  EXPECT_EQ(calls(), 0u);
  send(1);
  EXPECT_TRUE(until([&] { return calls() == 1; }));
  stop_all();
}

TEST_F(SteeringTest, WhatWasSetUpOutlivesTheDaemon) {
  const auto memory = base::Mapping::anonymous(virtio::KeptArea::size).value();
  const std::uint64_t bits = features | rss | notf_coal;
  make({.name = "a", .pairs = 4, .control_queue = true, .hash_report = true});
  device_->set_features(bits);
  device_->set_kept(std::make_shared<virtio::KeptArea>(memory, 0));
  start_queues(4, bits);
  const Bytes own{0x52, 0x54, 0, 9, 8, 7}, other{0x52, 0x54, 0, 1, 1, 1};
  EXPECT_EQ(command({{4, 0, 3, 0}}), 0);
  EXPECT_EQ(command({{1, 1}, own}), 0);
  EXPECT_EQ(command({{0, 0, 0}}), 0);
  EXPECT_EQ(command({coalescing(true, 2, 3'600'000'000u)}), 0);
  restart(memory, 4, bits);
  EXPECT_EQ(fabric_->endpoints.size(), 3u) << "pairs";
  EXPECT_EQ(std::memcmp(config_space().mac, own.data(), 6), 0);
  rings_[0]->post({256}), rings_[0]->post({256});
  deliver(other);
  EXPECT_FALSE(rings_[0]->take_used()) << "not promiscuous";
  deliver(own);
  EXPECT_TRUE(rings_[0]->take_used());
  EXPECT_EQ(device_->queue_status(0).calls, 0u) << "calls are held back";
  EXPECT_EQ(command({RssCommand{}.bytes()}), 0);
  restart(memory, 4, bits);
  ASSERT_NE(fabric_->steering, nullptr);
  EXPECT_EQ(fabric_->steering->slots[0], 1);
  EXPECT_EQ(fabric_->endpoints.size(), 4u);
  // Other features, or fewer pairs: another driver, another device. Nothing of it holds.
  restart(memory, 4, features | rss);
  EXPECT_EQ(fabric_->steering, nullptr);
  EXPECT_EQ(fabric_->endpoints.size(), 1u);
  stop_all();
}

TEST_F(SteeringTest, ARecordIsCheckedLikeCommands) {
  const auto memory = base::Mapping::anonymous(virtio::KeptArea::size).value();
  const std::uint64_t bits = features | rss;
  make({.name = "a", .pairs = 4, .control_queue = true, .hash_report = true});
  device_->set_features(bits);
  device_->set_kept(std::make_shared<virtio::KeptArea>(memory, 0));
  start_queues(4, bits);
  RssCommand far;
  far.table = {3, 3, 3, 3};
  EXPECT_EQ(command({far.bytes()}), 0);
  const auto record = virtio::KeptArea{memory, 0}.load();
  ASSERT_FALSE(record.empty());
  restart(memory, 2, bits);
  EXPECT_EQ(fabric_->steering, nullptr) << "pairs that this device does not have";
  // Any byte of it may be a lie, under a right checksum.
  restart(memory, 4, bits);
  for (unsigned i = 0; i < rings_.size(); ++i) stop(i);
  unsigned taken_up = 0;
  for (std::size_t at = 0; at < record.size(); ++at) {
    device_->set_features(bits);
    ASSERT_TRUE(until([&] { return fabric_->steering == nullptr; }));
    auto lie = record;
    lie[at] = std::byte{0xff};
    const auto area = std::make_shared<virtio::KeptArea>(memory, 0);
    area->store(lie);
    device_->set_kept(area);
    bool settled = false;
    pool_->post(
        0, [](base::Reactor&) {}, [&settled] { settled = true; });
    ASSERT_TRUE(until([&] { return settled; }));
    if (fabric_->steering == nullptr) continue;
    ++taken_up;
    const auto& steering = *fabric_->steering;
    ASSERT_LT(steering.mask, 128);
    for (unsigned i = 0; i <= steering.mask; ++i) ASSERT_LT(steering.slots[i], 4);
    ASSERT_LT(steering.unclassified, 4);
  }
  EXPECT_GT(taken_up, record.size() / 2) << "an address or a key may be anything";
  EXPECT_LT(taken_up, record.size() - 20);
  // A reset ends it: the next driver begins with nothing, and so does the next daemon with it.
  virtio::KeptArea{memory, 0}.store(record);
  device_->set_kept(std::make_shared<virtio::KeptArea>(memory, 0));
  device_->set_features(bits);
  EXPECT_TRUE((virtio::KeptArea{memory, 0}.load().empty()));
  close();
}

}  // namespace
}  // namespace millrace::net

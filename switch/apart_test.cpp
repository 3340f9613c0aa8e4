// Tags that a device takes off and puts on: the switch does with such frames as with those that
// have theirs in the header.
#include <gtest/gtest.h>

#include <random>

#include "switch/tag.hpp"
#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

// A port that puts tags on by itself. Nothing is allocated on its reactor.
class Tagger final : public Port {
 public:
  void deliver(std::span<const Packet* const> packets) noexcept override {
    for (const Packet* packet : packets) keep(*packet, -1);
  }
  [[nodiscard]] bool tags_by_itself() const noexcept override { return true; }
  void deliver_apart(std::span<const Packet* const> packets) noexcept override {
    for (const Packet* packet : packets) keep(*packet, packet->priority * 0x1000 + packet->vlan);
    apart += packets.size();
  }
  // As they would be on its wire, since the last time.
  std::vector<Bytes> frames() {
    std::vector<Bytes> out;
    for (const Kept& each : std::span{kept_}.first(std::exchange(count_, 0))) {
      const Bytes frame(each.bytes.begin(),
                        each.bytes.begin() + static_cast<std::ptrdiff_t>(each.size));
      out.push_back(each.tag < 0 ? frame : tagged(frame, static_cast<unsigned>(each.tag)));
    }
    return out;
  }
  std::size_t apart = 0;

 private:
  struct Kept {
    std::array<std::uint8_t, 1600> bytes;
    std::size_t size = 0;
    int tag = -1;
  };
  void keep(const Packet& packet, int tag) noexcept {
    Kept& to = kept_.at(count_++);
    to.size = 0, to.tag = tag;
    const auto append = [&to](const std::byte* data, std::size_t size) {
      std::memcpy(to.bytes.data() + to.size, data, size);
      to.size += size;
    };
    append(packet.header.data(), packet.header_size);
    for (const View& view : packet.payload()) append(view.data, view.size);
  }
  std::array<Kept, 8> kept_;
  std::size_t count_ = 0;
};

// A device's view: the outermost tag of 802.1Q is off and told apart.
void strip(const Bytes& frame, Bytes& left, Packet& packet) {
  const bool has_tag = frame.size() >= 18 && get16(frame, 12) == 0x8100;
  left = frame;
  if (has_tag) left.erase(left.begin() + 12, left.begin() + 16);
  describe(left, packet);
  packet.tag_apart = has_tag;
  if (!has_tag) return;
  packet.vlan = get16(frame, 14) & 0xfff;
  packet.priority = static_cast<std::uint8_t>(get16(frame, 14) >> 12);
}

// A wire with every kind of receiver behind it, twice: its frames come with their tags in the
// header, and apart.
struct Side {
  Side(const PortConfig& wire_config, unsigned reactors) : board{reactors} {
    wire = board.port(wire_config);
    PortConfig access10, access20, trunk, all;
    access10.access_vlan = 10, access20.access_vlan = 20;
    trunk.trunk = {10, 20, 30};
    for (const auto& config : {access10, access20, trunk, PortConfig{}, all}) {
      ports.push_back(board.port(config));
      const auto reactor = static_cast<unsigned>(ports.size()) % reactors;
      ends.push_back(&board.endpoint(ports.back(), reactor));
    }
    board.finish([&](auto done) {
      ASSERT_TRUE(board.fabric().add_mirror({{wire}, ports.back(), MirrorDirection::both}, done));
    });
  }
  void send(const std::vector<Bytes>& frames, bool apart) {
    std::vector<Packet> packets(frames.size());
    std::vector<Bytes> left(frames.size());
    for (std::size_t i = 0; i < frames.size(); ++i) {
      if (apart) {
        strip(frames[i], left[i], packets[i]);
      } else {
        describe(frames[i], packets[i]);
        packets[i].tag_apart = true;  // says nothing there
      }
    }
    board.on(0, [&] {
      auto& bridge = board.fabric().bridge(0);
      apart ? bridge.forward_apart(wire, packets) : bridge.forward(wire, packets);
    });
    board.settle();
  }

  Switchboard board;
  PortId wire = no_port;
  std::vector<PortId> ports;
  std::vector<FakePort*> ends;
};

struct Wire {
  std::uint16_t vlan;
  std::vector<std::uint16_t> trunk;
};

class Apart : public ::testing::TestWithParam<std::tuple<unsigned, int>> {};
INSTANTIATE_TEST_SUITE_P(Wires, Apart,
                         ::testing::Combine(::testing::Values(1u, 2u), ::testing::Range(0, 4)));

TEST_P(Apart, IsAsInTheHeader) {
  const Wire wires[] = {{0, {}}, {10, {}}, {0, {10, 30}}, {20, {10, 30}}};
  const auto& wire = wires[std::get<1>(GetParam())];
  PortConfig config;
  config.access_vlan = wire.vlan, config.trunk = wire.trunk, config.uplink = true;
  Side whole{config, std::get<0>(GetParam())}, apart{config, std::get<0>(GetParam())};
  std::mt19937 twister{7};
  const auto dice = [&twister] { return static_cast<unsigned>(twister()); };
  for (const unsigned control : {0x100000u, 0u, 0x6000u, 10u, 0xb00au, 0x4014u, 0x1eu, 99u}) {
    for (const std::size_t size : {14u, 15u, 17u, 18u, 56u, 60u, 124u, 128u, 129u, 1514u}) {
      std::vector<Bytes> frames;
      for (const unsigned type : {0x8100u, 0x88a8u}) {
        for (const unsigned inner : {0u, 0x8100u, 0x88a8u}) {
          const auto from = mac(dice() % 3 + 1), to = dice() % 2 == 0 ? everybody : mac(dice() % 3);
          Bytes frame = plain_frame(to, from, static_cast<std::uint8_t>(dice()), size);
          if (inner != 0) frame = tagged(frame, 20, inner);
          if (control <= 0xffff) frame = tagged(frame, control, type);
          frames.push_back(frame);
        }
      }
      for (auto* side : {&whole, &apart}) {
        for (auto* end : side->ends) end->clear();
        side->send(frames, side == &apart);
      }
      for (std::size_t i = 0; i < whole.ends.size(); ++i) {
        ASSERT_EQ(apart.ends[i]->received, whole.ends[i]->received) << control << ", port " << i;
        for (std::size_t at = 0; at < whole.ends[i]->received; ++at) {
          ASSERT_EQ(apart.ends[i]->frame(at), whole.ends[i]->frame(at))
              << control << ", port " << i;
        }
      }
    }
  }
  auto& counted = apart.board.counters(apart.wire);
  for_each_counter(whole.board.counters(whole.wire), [&](const char* name, base::Counter& count) {
    for_each_counter(counted, [&](const char* its, base::Counter& other) {
      if (std::string{its} == name) {
        EXPECT_EQ(other.get(), count.get()) << name;
      }
    });
  });
  EXPECT_NE(counted.tx_bytes.get(), 0u);
  EXPECT_EQ(apart.board.addresses().size(), whole.board.addresses().size());
}

// Of one flood some put tags on by themselves, some have none, and some have it put into the
// header.
TEST(TagsByItself, IsGivenTheTagApart) {
  Switchboard board;
  PortConfig access, trunk, native;
  access.access_vlan = 10;
  trunk.trunk = {10, 20};
  native.access_vlan = 10, native.trunk = {20};
  const auto from = board.port(trunk), other = board.port(trunk), guest = board.port(access);
  auto &in_header = board.endpoint(other), &without = board.endpoint(guest);
  std::array<Tagger, 2> wires;
  for (auto& wire : wires) {
    const auto port = board.port(&wire == &wires[0] ? trunk : native);
    board.finish([&](auto done) { board.fabric().add_endpoint(port, 0, 0, &wire, done); });
  }
  for (const std::size_t size : {60u, 126u, 128u, 130u, 1514u}) {
    const Bytes frame = plain_frame(everybody, mac(1), 5, size);
    const std::vector<Bytes> sent{tagged(frame, 0xa00a), tagged(tagged(frame, 7), 20)};
    board.send(from, sent);
    ASSERT_EQ(in_header.received, 2u);
    EXPECT_EQ(in_header.frame(0), sent[0]);
    EXPECT_EQ(in_header.frame(1), sent[1]);
    ASSERT_EQ(without.received, 1u);
    EXPECT_EQ(without.frame(0), frame);
    EXPECT_EQ(wires[0].frames(), sent);
    EXPECT_EQ(wires[1].frames(), (std::vector<Bytes>{frame, sent[1]}));
    EXPECT_EQ(wires[0].apart, 2u);
    EXPECT_EQ(wires[1].apart, 1u);
    for (auto& wire : wires) wire.apart = 0;
    in_header.clear(), without.clear();
  }
}

TEST(VlanOfPair, IsTheOneThatThePortHasWithoutTags) {
  const auto of = [](Wire port, Wire wire) {
    PortConfig one, other;
    one.access_vlan = port.vlan, one.trunk = port.trunk;
    other.access_vlan = wire.vlan, other.trunk = wire.trunk;
    return vlan_of_pair(one, other);
  };
  EXPECT_EQ(of({0, {}}, {0, {}}), 0);
  EXPECT_EQ(of({10, {}}, {0, {10}}), 10);
  EXPECT_EQ(of({10, {}}, {0, {20, 10}}), 10);
  for (const auto& [port, wire] : std::vector<std::pair<Wire, Wire>>{{{10, {}}, {0, {20}}},
                                                                     {{10, {}}, {0, {}}},
                                                                     {{10, {}}, {10, {}}},
                                                                     {{10, {}}, {20, {10}}},
                                                                     {{0, {}}, {0, {10}}},
                                                                     {{0, {10}}, {0, {10}}},
                                                                     {{10, {20}}, {0, {10}}}}) {
    EXPECT_EQ(of(port, wire), std::nullopt) << port.vlan << ' ' << wire.vlan;
  }
}

}  // namespace
}  // namespace millrace::vswitch

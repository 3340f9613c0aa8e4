#include "switch/fabric.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "switch/testing/switchboard.hpp"

namespace millrace::vswitch {
namespace {

using namespace testing;

TEST(Fabric, RefusesWrongPorts) {
  Switchboard board;
  auto& fabric = board.fabric();
  PortConfig bad;
  bad.access_vlan = 4095;
  EXPECT_FALSE(fabric.add_port(bad, {}));
  bad = {};
  bad.trunk = {10, 0};
  EXPECT_FALSE(fabric.add_port(bad, {}));
  bad = {};
  bad.static_macs = {everybody};
  EXPECT_FALSE(fabric.add_port(bad, {}));
  PortConfig owner;
  owner.static_macs = {mac(1)};
  const PortId port = board.port(owner);
  EXPECT_FALSE(fabric.add_port(owner, {}));
  owner.access_vlan = 10;  // the same address in another VLAN is another address
  EXPECT_TRUE(fabric.add_port(owner, {}));
  board.finish([&](auto done) { fabric.remove_port(port, std::move(done)); });
  owner.access_vlan = 0;
  EXPECT_TRUE(fabric.add_port(owner, {}));
}

TEST(Fabric, TakesAsManyPortsAsPromised) {
  Switchboard board;
  for (unsigned i = 0; i < 300; ++i) ASSERT_TRUE(board.fabric().add_port({}, {}).has_value());
  const PortId last = board.port({});
  board.endpoint(last);
  board.send(last, {plain_frame(everybody, mac(1))});
  EXPECT_EQ(board.addresses().size(), 1u);
}

TEST(Fabric, ListsAndFlushesAddresses) {
  Switchboard board{2};
  PortConfig owner;
  owner.static_macs = {mac(7)};
  owner.access_vlan = 5;
  const PortId a = board.port({}), b = board.port(owner);
  board.send(a, {plain_frame(everybody, mac(1))}, 1);
  board.send(b, {plain_frame(everybody, mac(2))}, 0);
  auto found = board.addresses();
  ASSERT_EQ(found.size(), 3u);
  for (const auto& address : found) {
    EXPECT_EQ(address.is_static, address.mac == mac(7));
    EXPECT_EQ(address.port, address.mac == mac(1) ? a : b);
    EXPECT_EQ(address.vlan, address.mac == mac(1) ? 0 : 5);
  }
  board.finish([&](auto done) { board.fabric().flush_addresses(a, std::move(done)); });
  EXPECT_EQ(board.addresses().size(), 2u);
  board.finish([&](auto done) { board.fabric().flush_addresses(no_port, std::move(done)); });
  EXPECT_EQ(board.addresses().size(), 1u);
  board.finish([&](auto done) { board.fabric().remove_port(b, std::move(done)); });
  EXPECT_EQ(board.addresses().size(), 0u);
}

TEST(Fabric, SharesWhatOneReactorLearned) {
  Switchboard board{2};
  const PortId a = board.port({}), b = board.port({}), c = board.port({});
  auto& end_a = board.endpoint(a, 0);
  auto& end_c = board.endpoint(c, 1);
  board.endpoint(b, 1);
  board.send(a, {plain_frame(everybody, mac(1))}, 0);
  end_c.clear();
  board.send(b, {plain_frame(mac(1), mac(2))}, 1);
  EXPECT_EQ(end_a.received, 1u);
  EXPECT_EQ(end_c.received, 0u);
}

TEST(Fabric, CarriesFramesOfAnySizeAcrossReactors) {
  Switchboard board{2};
  const PortId from = board.port({}), to = board.port({});
  auto& end = board.endpoint(to, 1);
  for (const std::size_t size : {14u, 60u, 127u, 128u, 129u, 1514u, 2800u, 4096u, 9018u, 65'553u}) {
    Bytes frame = plain_frame(everybody, mac(1), 3, size);
    for (std::size_t i = 14; i < size; ++i) frame[i] = static_cast<std::uint8_t>(i * 31 + i / 256);
    end.clear();
    board.send(from, {frame});
    ASSERT_EQ(end.received, 1u);
    EXPECT_EQ(end.frame(0), frame);
  }
}

// The receiver's reactor stands still: what does not fit is counted, nothing else suffers.
TEST(Fabric, StalledReactorCostsCountedDropsOnly) {
  Switchboard board{3};
  const PortId from = board.port({}), stalled = board.port({}), lively = board.port({});
  auto& end = board.endpoint(stalled, 1);
  auto& other = board.endpoint(lively, 2);
  end.keep = false, other.keep = false;
  board.send(stalled, {plain_frame(everybody, mac(1))}, 1);
  board.send(lively, {plain_frame(everybody, mac(2))}, 2);
  end.clear(), other.clear();
  std::atomic<bool> go{false}, back{false};
  board.pool().post(
      1,
      [&go](base::Reactor&) {
        while (!go.load()) std::this_thread::yield();
      },
      [&back] { back = true; });
  std::vector<Packet> packets(32);
  const Bytes slow = plain_frame(mac(1), mac(3), 0, 9000), quick = plain_frame(mac(2), mac(3));
  constexpr unsigned bursts = 200;
  for (unsigned i = 0; i < bursts; ++i) {
    for (auto& packet : packets) describe(slow, packet);
    board.on(0, [&] { board.fabric().bridge(0).forward(from, packets); });
    describe(quick, packets[0]);
    board.on(0, [&] { board.fabric().bridge(0).forward(from, std::span{packets}.first(1)); });
  }
  board.on(2, [&] { static_cast<Shard&>(board.fabric().bridge(2)).drain(); });
  EXPECT_EQ(other.received, bursts);
  go = true;
  board.wait([&] { return back.load(); });
  board.settle();
  const auto dropped = board.counters(stalled).drop_link_full.get();
  EXPECT_GT(dropped, 0u);
  EXPECT_EQ(end.received + dropped, bursts * 32);
  // The memory came back: everything passes again.
  end.clear();
  for (unsigned i = 0; i < 20; ++i) board.send(from, std::vector<Bytes>(32, slow));
  EXPECT_EQ(end.received, 640u);
  EXPECT_EQ(board.counters(stalled).drop_link_full.get(), dropped);
}

TEST(Fabric, KeepsTheOrderOfAFlowAcrossReactors) {
  Switchboard board{2};
  const PortId from = board.port({}), to = board.port({});
  std::array<FakePort*, 2> ends{&board.endpoint(to, 0, 0), &board.endpoint(to, 1, 1)};
  for (unsigned burst = 0; burst < 4; ++burst) {
    std::vector<Bytes> frames;
    for (unsigned i = 0; i < 16; ++i) {
      Bytes frame = make_frame({.udp = true, .payload = 20});
      set16(frame, 34, i % 4);  // the flow
      frame[frame.size() - 1] = static_cast<std::uint8_t>(burst * 16 + i);
      frames.push_back(frame);
    }
    board.send(from, frames);
  }
  std::array<int, 4> last{-1, -1, -1, -1};
  std::array<int, 4> where{-1, -1, -1, -1};
  for (int e = 0; e < 2; ++e) {
    for (std::size_t i = 0; i < ends[static_cast<unsigned>(e)]->received; ++i) {
      const Bytes frame = ends[static_cast<unsigned>(e)]->frame(i);
      const auto flow = get16(frame, 34);
      EXPECT_TRUE(where[flow] == -1 || where[flow] == e) << "a flow has one endpoint";
      where[flow] = e;
      EXPECT_GT(int{frame.back()}, last[flow]);
      last[flow] = frame.back();
    }
  }
  EXPECT_EQ(ends[0]->received + ends[1]->received, 64u);
}

// Sends a burst a round, for as long as it is on its reactor.
class Source final : public base::Poller {
 public:
  Source(Bridge& bridge, PortId port, const Bytes& frame)
      : bridge_{bridge}, port_{port}, frame_{frame}, packets_(8) {}
  bool poll() noexcept override {
    for (auto& packet : packets_) describe(frame_, packet);
    bridge_.forward(port_, packets_);
    sent.add(packets_.size());
    return true;
  }
  bool arm() noexcept override { return true; }
  void disarm() noexcept override {}
  base::Counter sent;

 private:
  Bridge& bridge_;
  PortId port_;
  const Bytes frame_;
  std::vector<Packet> packets_;
};

TEST(Fabric, EndpointIsNeverCalledAfterItsRemoval) {
  Switchboard board{3};
  const PortId from = board.port({}), to = board.port({});
  const Bytes frames[] = {plain_frame(everybody, mac(1), 0, 300),
                          plain_frame(mac(9), mac(2), 0, 300)};
  board.send(to, {plain_frame(everybody, mac(9))});
  Source first{board.fabric().bridge(0), from, frames[0]},
      second{board.fabric().bridge(1), from, frames[1]};
  board.finish([&](auto done) {
    board.pool().post(
        0, [&](base::Reactor& r) { r.add(first); }, std::move(done));
  });
  board.finish([&](auto done) {
    board.pool().post(
        1, [&](base::Reactor& r) { r.add(second); }, std::move(done));
  });
  for (unsigned i = 0; i < 24; ++i) {
    auto& end = board.endpoint(to, i % 3, i);
    end.keep = false;
    auto& twin = board.endpoint(to, (i + 1) % 3, 1000 + i);
    twin.keep = false;
    const auto before = first.sent.get() + second.sent.get();
    board.wait([&] { return first.sent.get() + second.sent.get() > before + 100; });
    board.finish([&](auto done) { board.fabric().remove_endpoint(to, i, std::move(done)); });
    end.gone = true;
    board.finish([&](auto done) { board.fabric().remove_endpoint(to, 1000 + i, std::move(done)); });
    twin.gone = true;
  }
  for (const unsigned i : {0u, 1u}) {
    board.finish([&](auto done) {
      board.pool().post(
          i, [&, i](base::Reactor& r) { r.remove(i == 0 ? first : second); }, std::move(done));
    });
  }
  board.settle();
  board.finish([&](auto done) { board.fabric().remove_port(to, std::move(done)); });
}

TEST(Fabric, ParcelsUnderWayToARemovedEndpointAreCounted) {
  Switchboard board{2};
  const PortId from = board.port({}), to = board.port({});
  auto& end = board.endpoint(to, 1);
  board.send(to, {plain_frame(everybody, mac(1))}, 1);
  end.clear();
  std::atomic<bool> go{false};
  board.pool().post(
      1,
      [&go](base::Reactor&) {
        while (!go.load()) std::this_thread::yield();
      },
      [] {});
  std::vector<Packet> packets(10);
  const Bytes frame = plain_frame(mac(1), mac(2));
  for (auto& packet : packets) describe(frame, packet);
  board.on(0, [&] { board.fabric().bridge(0).forward(from, packets); });
  bool removed = false;
  board.fabric().remove_endpoint(to, 0, [&] { removed = true; });
  go = true;
  board.wait([&] { return removed; });
  end.gone = true;
  board.settle();
  EXPECT_EQ(end.received, 0u);
  EXPECT_EQ(board.counters(to, 1).drop_no_queue.get(), 10u);
}

TEST(Fabric, WakesASleepingReceiver) {
  Switchboard board{2};
  const PortId from = board.port({}), to = board.port({});
  auto& end = board.endpoint(to, 1);
  end.keep = false;
  std::vector<Packet> packets(1);
  const Bytes frame = plain_frame(everybody, mac(1));
  board.wait([&] { return board.pool().at(1).counters().sleeps.get() > 0; });
  for (unsigned i = 1; i <= 20; ++i) {
    describe(frame, packets[0]);
    board.on(0, [&] { board.fabric().bridge(0).forward(from, packets); });
    board.wait([&] { return board.counters(to, 1).rx_packets.get() == i; });
  }
}

TEST(Fabric, MayGoWithCommandsUnderWay) {
  bool called = false;
  {
    Switchboard board{2};
    const PortId port = board.port({});
    static_cast<void>(board.fabric().add_port({}, [&called] { called = true; }));
    board.fabric().remove_port(port, [&called] { called = true; });
    board.fabric().list_addresses([&called](auto) { called = true; });
  }
  EXPECT_FALSE(called);
}

}  // namespace
}  // namespace millrace::vswitch

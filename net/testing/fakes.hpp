// A switch for tests: a bridge that runs a hook, and a fabric that remembers its endpoints.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "net/testing/frames.hpp"
#include "switch/fabric.hpp"

namespace millrace::net::testing {

// All bytes of a packet as a receiver would see them now.
inline Bytes bytes_of(const vswitch::Packet& packet) {
  Bytes out;
  const auto append = [&out](const std::byte* data, std::size_t size) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(data);
    out.insert(out.end(), from, from + size);
  };
  append(packet.header.data(), packet.header_size);
  for (const vswitch::View& view : packet.payload()) append(view.data, view.size);
  return out;
}

// A reactor that does not run: the test is its thread. One for all tests, it is slow to make.
inline base::Reactor& still_reactor() {
  static const std::unique_ptr<base::Reactor> reactor = std::move(base::Reactor::make({}).value());
  return *reactor;
}

class FakeBridge final : public vswitch::Bridge {
 public:
  struct Seen {
    Bytes bytes;
    vswitch::Offload offload;
    vswitch::PortId source;
    std::uint16_t views;
  };
  using Hook = std::function<void(std::span<vswitch::Packet>)>;

  void forward(vswitch::PortId ingress, std::span<vswitch::Packet> packets) noexcept override {
    if (!on_reactor) record(ingress, packets);
    if (!packets.empty()) {
      last = packets.back().header, last_length = packets.back().length;
      last_may_be_held = packets.back().completion != nullptr;
    }
    count.fetch_add(packets.size(), std::memory_order_release);
  }
  void forward_apart(vswitch::PortId, std::span<vswitch::Packet>) noexcept override {}
  [[nodiscard]] bool mirrors_direct(vswitch::PortId) const noexcept override { return false; }
  void mirror_direct(vswitch::PortId, std::span<vswitch::Packet>) noexcept override {}
  void record(vswitch::PortId ingress, std::span<vswitch::Packet> packets) {
    bursts.push_back(packets.size());
    if (hook) hook(packets);
    for (const vswitch::Packet& p : packets) {
      EXPECT_EQ(p.source, ingress);
      EXPECT_EQ(p.length, bytes_of(p).size());
      seen.push_back({bytes_of(p), p.offload, p.source, p.view_count});
    }
  }
  bool poll() noexcept override { return false; }
  bool arm() noexcept override { return false; }
  void disarm() noexcept override {}

  bool on_reactor = false;  // do nothing that allocates: no hook, no record
  Hook hook;                // runs first
  std::vector<Seen> seen;
  std::vector<std::size_t> bursts;
  std::atomic<std::size_t> count{0};
  // The last frame's first bytes; read after `count` was seen to grow.
  std::array<std::byte, vswitch::Packet::header_max> last{};
  std::size_t last_length = 0;
  bool last_may_be_held = false;
};

class FakeFabric final : public vswitch::Fabric {
 public:
  struct Endpoint {
    unsigned reactor = 0;
    vswitch::Port* port = nullptr;
  };

  FakeFabric(base::EventLoop& loop, unsigned reactors)
      : loop_{loop}, bridges(reactors), counters_(reactors) {
    for (FakeBridge& bridge : bridges) bridge.on_reactor = true;
  }

  base::Result<vswitch::PortId> add_port(const vswitch::PortConfig&, Done done) override {
    ++ports;
    loop_.defer(std::move(done));
    return vswitch::PortId{3};
  }
  void remove_port(vswitch::PortId, Done done) override {
    EXPECT_TRUE(endpoints.empty());
    --ports;
    steering.reset();
    loop_.defer(std::move(done));
  }
  void add_endpoint(vswitch::PortId port, unsigned slot, unsigned reactor, vswitch::Port* endpoint,
                    Done done) override {
    EXPECT_EQ(port, 3);
    EXPECT_TRUE(endpoints.emplace(slot, Endpoint{reactor, endpoint}).second) << "added twice";
    loop_.defer(std::move(done));
  }
  void remove_endpoint(vswitch::PortId port, unsigned slot, Done done) override {
    EXPECT_EQ(port, 3);
    EXPECT_EQ(endpoints.erase(slot), 1u) << "removed twice";
    loop_.defer(std::move(done));
  }
  void move_endpoint(vswitch::PortId, unsigned slot, unsigned reactor, Handed go) override {
    EXPECT_TRUE(endpoints.contains(slot));
    endpoints.at(slot).reactor = reactor;
    ++moves_begun;
    loop_.defer([go = std::move(go)] { go(nullptr); });
  }
  void end_move(vswitch::PortId, unsigned slot, Done done) override {
    EXPECT_TRUE(endpoints.contains(slot));
    ++moves_ended;
    loop_.defer(std::move(done));
  }
  std::shared_ptr<base::Handover> move_sender(unsigned) override {
    ++senders_moved;
    return nullptr;
  }
  void set_steering(vswitch::PortId port, std::shared_ptr<const vswitch::Steering> given,
                    Done done) override {
    EXPECT_EQ(port, 3);
    steering = std::move(given);
    loop_.defer(std::move(done));
  }
  void pair(vswitch::PortId, vswitch::PortId, Done done) override { loop_.defer(std::move(done)); }
  base::Result<> add_mirror(const vswitch::MirrorConfig&, Done done) override {
    loop_.defer(std::move(done));
    return {};
  }
  void remove_mirror(vswitch::PortId, Done done) override { loop_.defer(std::move(done)); }
  [[nodiscard]] vswitch::MirrorFigures mirror_figures(vswitch::PortId) const override { return {}; }
  vswitch::Bridge& bridge(unsigned reactor) override { return bridges.at(reactor); }
  vswitch::PortCounters& counters(vswitch::PortId, unsigned reactor) override {
    return counters_.at(reactor);
  }
  void flush_addresses(vswitch::PortId, Done done) override { loop_.defer(std::move(done)); }
  void list_addresses(std::function<void(std::vector<Address>)> done) override { done({}); }

 private:
  base::EventLoop& loop_;

 public:
  std::vector<FakeBridge> bridges;
  std::map<unsigned, Endpoint> endpoints;  // by slot
  std::shared_ptr<const vswitch::Steering> steering;
  int ports = 0, moves_begun = 0, moves_ended = 0, senders_moved = 0;

 private:
  std::vector<vswitch::PortCounters> counters_;
};

}  // namespace millrace::net::testing

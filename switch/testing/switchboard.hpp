// Switchboard: a Fabric over real reactors with fake ports, for tests. Thread: control.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "base/reactor_pool.hpp"
#include "switch/fabric.hpp"
#include "switch/shard.hpp"
#include "switch/testing/frames.hpp"

namespace millrace::vswitch::testing {

// Keeps what it is given. Its reactor writes; the test reads after a command of that reactor came
// back.
class FakePort final : public Port {
 public:
  explicit FakePort(PortCounters& counters) : counters_{counters} {}

  void deliver(std::span<const Packet* const> packets) noexcept override {
    EXPECT_FALSE(gone.load()) << "called after remove_endpoint was answered";
    ++calls;
    for (const Packet* packet : packets) {
      if (keep) frames[kept++ % frames.size()] = *packet, store(*packet);
      ++received;
      counters_.rx_packets.add();
    }
  }
  [[nodiscard]] Bytes frame(std::size_t at) const {
    return Bytes(bytes_.begin() + static_cast<std::ptrdiff_t>(starts_.at(at)),
                 bytes_.begin() + static_cast<std::ptrdiff_t>(starts_.at(at + 1)));
  }
  void clear() {
    kept = 0, calls = 0, received = 0;
    used_ = 0;
  }

  static constexpr std::size_t frames_max = 64;
  std::array<Packet, frames_max> frames;  // views are not valid any more: see frame()
  std::size_t kept = 0, calls = 0;
  std::uint64_t received = 0;
  std::atomic<bool> keep{true};
  std::atomic<bool> gone{false};

 private:
  // No allocation: this runs on a reactor.
  void store(const Packet& packet) noexcept {
    const std::size_t at = kept - 1;
    if (at >= frames_max || used_ + packet.length > bytes_.size()) return;
    starts_[at] = used_;
    append(packet.headers().data(), packet.header_size);
    for (const View& view : packet.payload()) append(view.data, view.size);
    starts_[at + 1] = used_;
  }
  void append(const std::byte* data, std::size_t size) noexcept {
    std::memcpy(bytes_.data() + used_, data, size);
    used_ += size;
  }

  PortCounters& counters_;
  Bytes bytes_ = Bytes(1024 * 1024);
  std::array<std::size_t, frames_max + 1> starts_{};
  std::size_t used_ = 0;
};

class Switchboard {
 public:
  explicit Switchboard(unsigned reactors = 1, const FabricConfig& config = {}) {
    std::vector<base::ReactorConfig> configs(reactors);
    for (unsigned i = 0; i < reactors; ++i) configs[i].index = i;
    pool_ = *base::ReactorPool::make(loop_, configs);
    fabric_ = *Fabric::make(*pool_, config);
  }
  ~Switchboard() { fabric_.reset(); }

  Fabric& fabric() { return *fabric_; }
  base::ReactorPool& pool() { return *pool_; }
  base::EventLoop& loop() { return loop_; }

  // Steps the control loop until `ready`.
  void wait(const std::function<bool()>& ready) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (!ready()) {
      ASSERT_LT(std::chrono::steady_clock::now(), end) << "waited in vain";
      loop_.step(std::chrono::milliseconds{10});
    }
  }
  // Calls `start(done)` and waits for done.
  void finish(const std::function<void(Fabric::Done)>& start) {
    bool done = false;
    start([&done] { done = true; });
    wait([&done] { return done; });
  }
  void on(unsigned reactor, const std::function<void()>& run) {
    finish([&](Fabric::Done done) {
      pool_->post(
          reactor, [&run](base::Reactor&) { run(); }, std::move(done));
    });
  }

  PortId port(PortConfig config) {
    if (config.name.empty()) config.name = "p" + std::to_string(++names_);
    PortId id = no_port;
    finish([&](Fabric::Done done) {
      auto added = fabric_->add_port(config, std::move(done));
      ASSERT_TRUE(added.has_value());
      id = *added;
    });
    return id;
  }
  FakePort& endpoint(PortId port, unsigned reactor = 0, unsigned slot = 0) {
    ends_.push_back(std::make_unique<FakePort>(fabric_->counters(port, reactor)));
    finish([&](Fabric::Done done) {
      fabric_->add_endpoint(port, slot, reactor, ends_.back().get(), std::move(done));
    });
    return *ends_.back();
  }

  // Forwards `frames` in one burst on `reactor`, then lets every reactor take in what was sent to
  // it.
  void send(PortId port, const std::vector<Bytes>& frames, unsigned reactor = 0,
            const std::function<void(Packet&)>& edit = {}) {
    std::vector<Packet> packets(frames.size());
    for (std::size_t i = 0; i < frames.size(); ++i) {
      describe(frames[i], packets[i]);
      if (edit) edit(packets[i]);
    }
    on(reactor, [&] { fabric_->bridge(reactor).forward(port, packets); });
    settle();
  }
  void settle() {
    for (unsigned i = 0; i < pool_->size(); ++i) {
      on(i, [&, i] { static_cast<Shard&>(fabric_->bridge(i)).drain(); });
    }
  }
  std::vector<Fabric::Address> addresses() {
    std::vector<Fabric::Address> out;
    finish([&](Fabric::Done done) {
      fabric_->list_addresses([&out, done](std::vector<Fabric::Address> found) {
        out = std::move(found);
        done();
      });
    });
    return out;
  }
  PortCounters& counters(PortId port, unsigned reactor = 0) {
    return fabric_->counters(port, reactor);
  }

 private:
  base::EventLoop loop_;
  std::unique_ptr<base::ReactorPool> pool_;
  std::unique_ptr<Fabric> fabric_;
  std::vector<std::unique_ptr<FakePort>> ends_;
  unsigned names_ = 0;
};

inline Mac mac(unsigned number) {
  return {2,
          0,
          0,
          static_cast<std::uint8_t>(number >> 16),
          static_cast<std::uint8_t>(number >> 8),
          static_cast<std::uint8_t>(number)};
}
inline constexpr Mac everybody{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

}  // namespace millrace::vswitch::testing

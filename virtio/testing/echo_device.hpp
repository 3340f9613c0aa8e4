// EchoDevice: a device whose queues give every buffer back, or keep it until they are told to let
// go; and a test that drives one on two reactors.
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
#include "virtio/device_base.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio::testing {

// Gives every buffer back at once, or keeps it until it is told to let go.
class EchoWorker final : public QueueWorker {
 public:
  struct Shared {
    std::atomic<bool> hold{false}, poison{false}, can_move{true};
    std::atomic<int> attached{0}, detached{0}, quiesced{0}, enabled{-1};
  };
  EchoWorker(std::unique_ptr<Queue> queue, Shared& shared)
      : QueueWorker{std::move(queue)}, shared_{shared} {}

  bool poll() noexcept override {
    if (shared_.poison.exchange(false)) queue().poison(Fault::request_malformed, calls());
    const bool busy = queue().with_ring([this](auto& ring) {
      bool any = false;
      while (!quiesced_ && queue().enabled() && count_ < held_.size() &&
             ring.take(chain_) == Take::chain) {
        held_[count_++] = chain_.ticket();
        any = true;
      }
      if (!shared_.hold) {
        for (; count_ != 0; any = true) ring.give(held_[--count_], 0);
      }
      return any;
    });
    queue().publish_and_call(calls());
    return busy;
  }
  bool arm() noexcept override {
    const bool work = queue().with_ring([](auto& ring) { return ring.arm(); });
    return work && queue().enabled() && !quiesced_ && count_ < held_.size();
  }
  void disarm() noexcept override {
    queue().with_ring([](auto& ring) { ring.disarm(); });
  }
  [[nodiscard]] bool can_move() const noexcept override { return shared_.can_move; }
  void attached(base::Reactor& reactor) noexcept override {
    reactor_ = &reactor;
    quiesced_ = false;
    ++shared_.attached;
    disarm();
  }
  void enabled_changed(bool enabled) noexcept override { shared_.enabled = enabled; }
  void quiesce() noexcept override {
    quiesced_ = true;
    ++shared_.quiesced;
  }
  bool drained() noexcept override { return count_ == 0; }
  bool memory_released() noexcept override { return count_ == 0; }
  void detached(base::Reactor&) noexcept override { ++shared_.detached; }

 private:
  base::CallSignal& calls() { return reactor_->calls(); }
  Shared& shared_;
  base::Reactor* reactor_ = nullptr;
  Chain chain_;
  std::array<Ticket, 4> held_;
  std::size_t count_ = 0;
  bool quiesced_ = false;
};

class EchoDevice final : public DeviceBase {
 public:
  using DeviceBase::DeviceBase;
  DeviceKind kind() const override { return DeviceKind::blk; }
  std::uint64_t features() const override { return 0; }
  std::span<const std::byte> config() const override { return {}; }
  base::Result<void> write_config(std::uint32_t, std::span<const std::byte>) override { return {}; }
  EchoWorker::Shared shared;
  std::vector<std::string> hooks;
  bool no_worker = false;
  std::shared_ptr<base::Handover> handover;

 protected:
  std::unique_ptr<QueueWorker> make_worker(std::unique_ptr<Queue> queue) override {
    if (no_worker) return nullptr;
    return std::make_unique<EchoWorker>(std::move(queue), shared);
  }
  void worker_started(QueueWorker&, unsigned, bool enabled, std::function<void()> next) override {
    hooks.push_back(enabled ? "started enabled" : "started");
    next();
  }
  void worker_enabled(QueueWorker&, unsigned, bool enabled, std::function<void()> next) override {
    hooks.push_back(enabled ? "enabled" : "disabled");
    next();
  }
  void worker_stopping(QueueWorker&, unsigned, std::function<void()> next) override {
    hooks.push_back("stopping");
    next();
  }
  void worker_moving(QueueWorker&, unsigned from, unsigned to,
                     std::function<void(std::shared_ptr<base::Handover>)> go) override {
    hooks.push_back("moving " + std::to_string(from) + " to " + std::to_string(to));
    go(handover);
  }
  void worker_moved(QueueWorker&, unsigned reactor, std::function<void()> next) override {
    hooks.push_back("moved to " + std::to_string(reactor));
    next();
  }
  void worker_stopped(QueueWorker&) override { hooks.push_back("stopped"); }
};

class EchoDeviceTest : public ::testing::TestWithParam<bool> {
 protected:
  EchoDeviceTest() {
    auto pool = base::ReactorPool::make(loop_, {{.index = 0}, {.index = 1}});
    EXPECT_TRUE(pool.has_value());
    pool_ = *std::move(pool);
    device_ = std::make_unique<EchoDevice>("echo", 3u, *pool_);
  }
  // Turns the loop until `done`; a minute is for ever.
  void until(const std::function<bool()>& done) {
    bool met = done();
    for (unsigned i = 0; i < 60'000 && !met; ++i) {
      loop_.step(std::chrono::milliseconds{1});
      met = done();
    }
    ASSERT_TRUE(met);
  }
  // Makes a request and waits for its answer, which must not come from inside the call.
  base::Result<void> ask(const std::function<void(Device::Done)>& request) {
    bool answered = false;
    base::Result<void> out;
    request([&](base::Result<void> result) {
      answered = true;
      out = std::move(result);
    });
    EXPECT_FALSE(answered);
    until([&] { return answered; });
    return out;
  }
  base::Result<void> start(unsigned index = 0, bool enabled = true) {
    return ask(
        [&](auto done) { device_->start_queue(driver_.start(index, enabled), std::move(done)); });
  }
  std::uint32_t stop(unsigned index = 0) {
    std::uint32_t base = ~0u;
    bool answered = false;
    device_->stop_queue(index, [&](std::uint32_t position) {
      base = position;
      answered = true;
    });
    EXPECT_FALSE(answered);
    until([&] { return answered; });
    return base;
  }
  void send(unsigned count = 1) {
    for (unsigned i = 0; i < count; ++i) {
      ASSERT_TRUE(driver_.add({{FakeDriver::data_address, 1}}, {}));
    }
    driver_.submit();
  }
  void expect_served(unsigned count) {
    unsigned reaped = 0;
    until([&] {
      while (driver_.poll()) ++reaped;
      return reaped >= count;
    });
    EXPECT_EQ(reaped, count);
  }

  FakeDriver driver_{{.size = 8, .packed = GetParam()}};
  base::EventLoop loop_;
  std::unique_ptr<base::ReactorPool> pool_;
  std::unique_ptr<EchoDevice> device_;
};

}  // namespace millrace::virtio::testing

// FakeDevice: a virtio::Device without queues, for tests of the protocol: it writes down what it is
// asked and answers from the event loop, as a real one does. Thread: control.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "virtio/device.hpp"
#include "virtio/features.hpp"

namespace millrace::vhost::testing {

class FakeDevice final : public virtio::Device {
 public:
  FakeDevice(base::EventLoop& loop, virtio::DeviceKind kind, unsigned queues)
      : loop_{loop}, kind_{kind}, queues_{queues} {
    for (std::size_t i = 0; i < config_bytes.size(); ++i) config_bytes[i] = std::byte(i + 1);
  }
  // Answers that are still due have captured `this`.
  ~FakeDevice() override { *alive_ = false; }

  struct Started {
    virtio::QueueStart start;
    std::uint32_t position = 0;  // what stop_queue answers; starts as the base
  };

  // --- what a test reads and sets ---
  std::vector<std::string> calls;       // one line for each request, in order
  std::map<unsigned, Started> started;  // by queue
  bool offers_config_space = true;
  std::uint64_t offered = virtio::feature::version_1 | virtio::feature::event_idx |
                          virtio::feature::indirect_desc | virtio::feature::ring_packed;
  std::uint64_t negotiated = ~0ull;
  std::shared_ptr<virtio::DirtyLog> log;
  std::vector<std::byte> written;  // of the last SET_CONFIG
  std::vector<std::byte> config_bytes = std::vector<std::byte>(64);
  bool connected = false;
  bool hold = false;       // keep answers back until answer_one()
  bool fail_next = false;  // the next answer is an error
  std::function<void()> config_hook;
  std::function<void(unsigned, virtio::Fault)> fault_hook;

  // Gives one held answer; false: none is held.
  bool answer_one() {
    if (held_.empty()) return false;
    const auto answer = std::move(held_.front());
    held_.pop_front();
    answer();
    return true;
  }
  [[nodiscard]] std::size_t held() const { return held_.size(); }

  // --- virtio::Device ---
  [[nodiscard]] virtio::DeviceKind kind() const override { return kind_; }
  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] std::uint64_t features() const override { return offered; }
  [[nodiscard]] unsigned queues_max() const override { return queues_; }
  [[nodiscard]] bool offers_config() const override { return offers_config_space; }
  [[nodiscard]] std::span<const std::byte> config() const override { return config_bytes; }
  base::Result<void> write_config(std::uint32_t offset, std::span<const std::byte> in) override {
    note("write_config " + std::to_string(offset) + " " + std::to_string(in.size()));
    if (std::exchange(fail_next, false) || offset != writable_offset || in.size() != 1) {
      return base::fail("the field is not writable");
    }
    written.assign(in.begin(), in.end());
    return {};
  }
  void set_features(std::uint64_t features) override { negotiated = features; }
  void start_queue(virtio::QueueStart start, Done done) override {
    const auto index = start.index;
    note("start " + std::to_string(index));
    if (std::exchange(fail_next, false))
      return answer([done] { done(base::fail("told to fail")); });
    const auto base = start.ring.base;
    started[index] = Started{std::move(start), base};
    answer([done] { done({}); });
  }
  void stop_queue(unsigned index, Stopped stopped) override {
    note("stop " + std::to_string(index));
    const auto found = started.find(index);
    const auto position = found == started.end() ? 0 : found->second.position;
    answer([this, index, position, stopped] {
      started.erase(index);
      stopped(position);
    });
  }
  void enable_queue(unsigned index, bool enabled, Done done) override {
    note((enabled ? "enable " : "disable ") + std::to_string(index));
    started.at(index).start.enabled = enabled;
    answer([done] { done({}); });
  }
  void set_call(unsigned index, base::Fd call, Done done) override {
    note("call " + std::to_string(index));
    started.at(index).start.call = std::move(call);
    answer([done] { done({}); });
  }
  void set_kick(unsigned index, base::Fd kick, Done done) override {
    note("kick " + std::to_string(index));
    started.at(index).start.kick = std::move(kick);
    answer([done] { done({}); });
  }
  void set_memory(std::shared_ptr<const virtio::GuestMemory> memory, Done done) override {
    note("memory");
    answer([this, memory, done] {
      for (auto& [index, queue] : started) queue.start.memory = memory;
      done({});
    });
  }
  void set_log(std::shared_ptr<virtio::DirtyLog> next, Done done) override {
    note(next != nullptr ? "log on" : "log off");
    log = next;
    for (auto& [index, queue] : started) queue.start.log = next;
    answer([done] { done({}); });
  }
  base::Result<void> announce(std::span<const std::uint8_t, 6> mac) override {
    note("announce " + std::to_string(mac[0]) + ".." + std::to_string(mac[5]));
    return {};
  }
  base::Result<void> set_mtu(std::uint16_t mtu) override {
    note("mtu " + std::to_string(mtu));
    return {};
  }
  void on_config_change(std::function<void()> hook) override { config_hook = std::move(hook); }
  void set_connected(bool is) override { connected = is; }
  void on_fault(std::function<void(unsigned, virtio::Fault)> hook) override {
    fault_hook = std::move(hook);
  }

  static constexpr std::uint32_t writable_offset = 32;

 private:
  // A fuzzer calls for ever and nobody reads.
  void note(std::string line) {
    if (calls.size() < 4096) calls.push_back(std::move(line));
  }
  void answer(std::function<void()> give) {
    if (hold) {
      held_.push_back(std::move(give));
    } else {
      loop_.defer([alive = alive_, give = std::move(give)] {
        if (*alive) give();
      });
    }
  }

  base::EventLoop& loop_;
  const virtio::DeviceKind kind_;
  const unsigned queues_;
  const std::string name_ = "fake0";
  std::deque<std::function<void()>> held_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace::vhost::testing

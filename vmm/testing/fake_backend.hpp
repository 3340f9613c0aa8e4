// FakeBackend: a VirtioBackend that notes what it is told and answers when a test says so.
// Thread: one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "vmm/virtio_backend.hpp"

namespace millrace::vmm::testing {

class FakeBackend final : public VirtioBackend {
 public:
  explicit FakeBackend(unsigned queues) : queues_{queues} {}

  void open(Listener& to) override { listener = &to; }
  void close() override { closed = true; }
  [[nodiscard]] std::uint64_t features() const override { return offered; }
  [[nodiscard]] unsigned queues() const override { return queues_; }
  [[nodiscard]] std::uint16_t queue_size_max() const override { return 256; }
  [[nodiscard]] std::vector<std::byte> config() const override { return space; }
  void refresh_config() override {
    if (on_refresh) on_refresh();
  }
  bool write_config(std::uint32_t offset, std::span<const std::byte> bytes) override {
    writes.push_back({offset, {bytes.begin(), bytes.end()}});
    return accept_writes;
  }
  void activate(std::uint64_t features, std::span<const VirtQueue> queues) override {
    active = true;
    negotiated = features;
    for (const auto& queue : queues) running[queue.index] = queue;
  }
  void stop() override { ++stops; }
  void start_queue(const VirtQueue& queue) override { running[queue.index] = queue; }
  void stop_queue(unsigned index) override { queue_stops.push_back(index); }
  void set_call(unsigned index, int call) override { running[index].call = call; }

  void finish_stop() {
    active = false;
    running.clear();
    listener->stopped();
  }
  void finish_queue_stop(unsigned index) {
    running.erase(index);
    listener->queue_stopped(index);
  }

  struct Write {
    std::uint32_t offset;
    std::vector<std::byte> bytes;
  };
  std::uint64_t offered = 0;
  std::vector<std::byte> space = std::vector<std::byte>(60);
  Listener* listener = nullptr;
  std::function<void()> on_refresh;  // the driver is about to read
  bool active = false, closed = false, accept_writes = true;
  std::uint64_t negotiated = 0;
  std::map<unsigned, VirtQueue> running;
  std::vector<unsigned> queue_stops;
  std::vector<Write> writes;
  unsigned stops = 0;

 private:
  const unsigned queues_;
};

}  // namespace millrace::vmm::testing

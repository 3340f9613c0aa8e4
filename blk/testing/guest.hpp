// Guest: a driver of one disk over real rings, real memory and real reactors, for tests. Host: what
// the daemon has. Thread: the test's, which is the control thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/event_loop.hpp"
#include "base/reactor_pool.hpp"
#include "blk/device.hpp"
#include "blk/uring_pool.hpp"
#include "virtio/features.hpp"
#include "virtio/testing/fake_driver.hpp"
#include "virtio/wire/blk.hpp"

namespace millrace::blk::testing {

using Bytes = std::vector<std::byte>;

// The daemon's side: loop, reactors, rings.
class Host {
 public:
  explicit Host(unsigned reactors = 1) {
    std::vector<base::ReactorConfig> configs(reactors);
    for (unsigned i = 0; i < reactors; ++i) configs[i].index = i;
    auto made = base::ReactorPool::make(loop, configs);
    EXPECT_TRUE(made) << made.error().message;
    pool = std::move(*made);
    auto made_rings = UringPool::make(*pool);
    EXPECT_TRUE(made_rings) << made_rings.error().message;
    rings = std::move(*made_rings);
  }
  ~Host() {
    bool closed = false;
    rings->close([&] { closed = true; });
    EXPECT_TRUE(wait([&] { return closed; }));
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  bool wait(const std::function<bool()>& until) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (!until()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      loop.step(std::chrono::milliseconds{0});
    }
    return true;
  }

  base::EventLoop loop;
  std::unique_ptr<base::ReactorPool> pool;
  std::unique_ptr<UringPool> rings;
};

struct Answer {
  std::optional<virtio::wire::BlkStatus> status;  // none: the byte was not written
  std::uint32_t used = 0;
  Bytes data;  // what lies in the writable part before the status byte
};

// How the bytes of a request are cut into descriptors. Empty: header, data and status apart.
struct Layout {
  std::vector<std::uint32_t> readable, writable;  // sizes; the last one takes the rest
  bool indirect = false;
};

class Guest {
 public:
  static constexpr std::byte untouched{0xa5};

  Guest(Host& host, Device& device, bool packed, unsigned queues = 1, std::uint32_t size = 64,
        std::uint64_t without = 0)
      : host_{host}, device_{device} {
    namespace bit = virtio::feature;
    virtio::testing::DriverConfig config;
    config.size = size;
    config.packed = packed;
    config.features = device.features() & ~bit::ring_packed & ~without;
    config.regions = {6u << 20, 8u << 20};
    config.start = static_cast<std::uint16_t>(packed ? size - 1 : 0xfffe);  // wraps soon
    for (unsigned i = 0; i < queues; ++i) {
      queues_.push_back(std::make_unique<Queue>(config));
    }
    device.set_features(queues_.front()->driver.features());
    for (unsigned i = 0; i < queues; ++i) start(i);
  }
  ~Guest() {
    for (unsigned i = 0; i < queues_.size(); ++i) stop(i);
  }
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  void start(unsigned queue) {
    bool started = false;
    device_.start_queue(driver(queue).start(queue), [&](base::Result<void> result) {
      EXPECT_TRUE(result) << result.error().message;
      started = true;
    });
    EXPECT_TRUE(host_.wait([&] { return started; }));
    queues_[queue]->started = true;
  }
  void stop(unsigned queue) {
    if (!std::exchange(queues_[queue]->started, false)) return;
    bool stopped = false;
    device_.stop_queue(queue, [&](std::uint32_t) { stopped = true; });
    EXPECT_TRUE(host_.wait([&] { return stopped; })) << "queue " << queue << " does not drain";
  }
  [[nodiscard]] virtio::testing::FakeDriver& driver(unsigned queue = 0) {
    return queues_.at(queue)->driver;
  }

  // Publishes header + `out` as readable and `in` bytes + status as writable. Answers a handle.
  unsigned submit(std::uint32_t type, std::uint64_t sector, const Bytes& out, std::size_t in,
                  const Layout& layout = {}, unsigned queue = 0) {
    virtio::wire::BlkHeader header{};
    header.type = base::le32{type};
    header.sector = base::le64{sector};
    Bytes readable(sizeof header);
    std::memcpy(readable.data(), &header, sizeof header);
    readable.insert(readable.end(), out.begin(), out.end());
    return submit_raw(readable, in + 1, layout, queue);
  }
  unsigned submit_raw(const Bytes& readable, std::size_t writable, Layout layout = {},
                      unsigned queue = 0) {
    auto& mine = *queues_.at(queue);
    if (layout.readable.empty() && readable.size() > 16) layout.readable = {16, 0};
    if (layout.writable.empty() && writable > 1) {
      layout.writable = {static_cast<std::uint32_t>(writable - 1), 0};
    }
    // The data of both parts begins `skew` bytes past a page.
    Pending pending;
    const std::uint64_t read_at = mine.take(readable.size() + skew + 4096) + 4096 - 16 + skew;
    pending.write_at = mine.take(writable + skew) + skew;
    pending.writable = writable;
    mine.driver.write(read_at, readable);
    mine.driver.fill(pending.write_at, writable, std::to_integer<std::uint8_t>(untouched));
    std::vector<virtio::testing::Buffer> out, in;
    cut(out, read_at, readable.size(), layout.readable);
    cut(in, pending.write_at, writable, layout.writable);
    const auto id = mine.driver.add(
        out, in,
        layout.indirect ? virtio::testing::Layout::indirect : virtio::testing::Layout::direct);
    EXPECT_TRUE(id.has_value()) << "the queue is full";
    pending.queue = queue;
    mine.handles[id.value_or(0)] = next_handle_;
    ++mine.outstanding;
    if (!hold_back) mine.driver.submit();
    pending_[next_handle_] = pending;
    return next_handle_++;
  }
  // nullopt: not there yet.
  std::optional<Answer> collect(unsigned handle) {
    auto& mine = *queues_.at(pending_.at(handle).queue);
    while (const auto used = mine.driver.poll()) {
      const unsigned whose = mine.handles.at(used->id);
      const Pending& pending = pending_.at(whose);
      Answer answer;
      answer.used = used->length;
      answer.data.resize(pending.writable);
      mine.driver.read(pending.write_at, answer.data);
      const std::byte status = answer.data.back();
      answer.data.pop_back();
      if (status != untouched) answer.status = static_cast<virtio::wire::BlkStatus>(status);
      answers_[whose] = std::move(answer);
      if (--mine.outstanding == 0) mine.next = 0;
    }
    const auto found = answers_.find(handle);
    if (found == answers_.end()) return std::nullopt;
    Answer answer = std::move(found->second);
    answers_.erase(found);
    pending_.erase(handle);
    return answer;
  }
  Answer wait(unsigned handle) {
    std::optional<Answer> answer;
    EXPECT_TRUE(host_.wait([&] { return (answer = collect(handle)).has_value(); }))
        << "request " << handle << " is not answered";
    return answer.value_or(Answer{});
  }
  Answer request(std::uint32_t type, std::uint64_t sector, const Bytes& out, std::size_t in,
                 const Layout& layout = {}, unsigned queue = 0) {
    return wait(submit(type, sector, out, in, layout, queue));
  }
  Answer read(std::uint64_t sector, std::size_t bytes, const Layout& layout = {},
              unsigned queue = 0) {
    return request(0, sector, {}, bytes, layout, queue);
  }
  Answer write(std::uint64_t sector, const Bytes& data, const Layout& layout = {},
               unsigned queue = 0) {
    return request(1, sector, data, 0, layout, queue);
  }
  Answer flush(unsigned queue = 0) { return request(4, 0, {}, 0, {}, queue); }
  Answer ranges(std::uint32_t type, const std::vector<virtio::wire::BlkRange>& ranges,
                const Layout& layout = {}) {
    return request(type, 0, bytes_of(ranges), 0, layout);
  }
  static Bytes bytes_of(const std::vector<virtio::wire::BlkRange>& ranges) {
    Bytes out;
    for (const auto& range : ranges) {
      const auto raw = std::as_bytes(std::span{&range, 1});
      out.insert(out.end(), raw.begin(), raw.end());
    }
    return out;
  }
  static virtio::wire::BlkRange range(std::uint64_t sector, std::uint32_t sectors,
                                      std::uint32_t flags = 0) {
    return {base::le64{sector}, base::le32{sectors}, base::le32{flags}};
  }

  // Where the data of a request begins in a page: 0 for memory that O_DIRECT takes.
  std::uint64_t skew = 3;
  bool hold_back = false;  // do not publish yet

 private:
  struct Queue {
    static constexpr std::uint64_t bytes = 14u << 20;
    explicit Queue(const virtio::testing::DriverConfig& config) : driver{config} {}
    // Page aligned room, reused when nothing is outstanding or at the end.
    std::uint64_t take(std::uint64_t size) {
      size = (size + 4095) / 4096 * 4096;
      if (next + size > bytes) next = 0;
      const std::uint64_t at = virtio::testing::FakeDriver::data_address + next;
      next += size;
      return at;
    }
    virtio::testing::FakeDriver driver;
    std::map<unsigned, unsigned> handles;
    std::uint64_t next = 0;
    unsigned outstanding = 0;
    bool started = false;
  };
  struct Pending {
    unsigned queue = 0;
    std::uint64_t write_at = 0;
    std::size_t writable = 0;
  };
  static void cut(std::vector<virtio::testing::Buffer>& out, std::uint64_t at, std::size_t bytes,
                  const std::vector<std::uint32_t>& cuts) {
    for (std::size_t i = 0; i + 1 < cuts.size() && bytes > 0; ++i) {
      const auto size = static_cast<std::uint32_t>(std::min<std::size_t>(cuts[i], bytes));
      out.push_back({at, size});
      at += size;
      bytes -= size;
    }
    if (bytes > 0) out.push_back({at, static_cast<std::uint32_t>(bytes)});
  }

  Host& host_;
  Device& device_;
  std::vector<std::unique_ptr<Queue>> queues_;
  std::map<unsigned, Pending> pending_;
  std::map<unsigned, Answer> answers_;
  unsigned next_handle_ = 1;
};

}  // namespace millrace::blk::testing

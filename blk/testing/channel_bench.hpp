// ChannelBench: a UringChannel over a real io_uring and real files, driven by the test's own
// thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "base/mapping.hpp"
#include "blk/image.hpp"
#include "blk/testing/scratch_file.hpp"
#include "blk/uring.hpp"
#include "blk/uring_channel.hpp"

namespace millrace::blk::testing {

using Bytes = std::vector<std::byte>;

// Page aligned memory, and views of it that are not.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : mapping_{*base::Mapping::anonymous(bytes)} {}
  [[nodiscard]] std::byte* at(std::size_t offset) const { return mapping_->data() + offset; }
  void put(std::size_t offset, const Bytes& data) const {
    std::copy(data.begin(), data.end(), at(offset));
  }
  [[nodiscard]] Bytes get(std::size_t offset, std::size_t bytes) const {
    return Bytes(at(offset), at(offset) + bytes);
  }

 private:
  std::shared_ptr<const base::Mapping> mapping_;
};

struct Operands {
  Io io;
  std::vector<iovec> vectors;
};

class ChannelBench {
 public:
  // with_polled: a second ring, with iopoll, for direct transfers.
  ChannelBench(UringOptions options, UringTarget target, bool with_polled = false) {
    auto reactor = base::Reactor::make({});
    EXPECT_TRUE(reactor) << reactor.error().message;
    reactor_ = std::move(*reactor);
    auto ring = Uring::make(options);
    EXPECT_TRUE(ring) << ring.error().message;
    ring_ = std::move(*ring);
    had = options;
    ring_->attached(*reactor_);
    rings_.push_back(ring_.get());
    if (with_polled) {
      options.iopoll = true;
      polled_ring_ = std::move(*Uring::make(options));
      polled_ring_->attached(*reactor_);
      polled_.push_back(polled_ring_.get());
    }
    std::unique_ptr<BouncePool> bounce;
    if (target.direct >= 0) bounce = std::move(*BouncePool::make());
    channel_ = std::make_unique<UringChannel>(target, UringWays{rings_, polled_, &pins},
                                              std::move(bounce), statistics);
    channel_->attached(*reactor_);
  }
  ~ChannelBench() {
    pins = nullptr;
    EXPECT_TRUE(channel_->leaves_memory());
    channel_->detached(*reactor_);
    ring_->detached(*reactor_);
    if (polled_ring_ != nullptr) polled_ring_->detached(*reactor_);
  }
  ChannelBench(const ChannelBench&) = delete;
  ChannelBench& operator=(const ChannelBench&) = delete;

  Io& add(Operation operation, std::uint64_t offset, std::uint64_t length,
          std::vector<iovec> vectors = {}) {
    Operands& made = operands_.emplace_back();
    made.vectors = std::move(vectors);
    made.io.operation = operation;
    made.io.offset = offset;
    made.io.length = length;
    made.io.vectors = made.vectors.data();
    made.io.vector_count = static_cast<std::uint32_t>(made.vectors.size());
    burst_.push(made.io);
    ++expected_;
    return made.io;
  }
  Io& add_data(Operation operation, std::uint64_t offset, std::byte* at, std::size_t bytes) {
    return add(operation, offset, bytes, {iovec{at, bytes}});
  }
  // Submits what was added and waits for all of it. `each_round` runs between visits.
  void run(const std::function<void(unsigned round)>& each_round = {}) {
    channel_->submit(burst_);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{30};
    for (unsigned round = 0; expected_ > 0; ++round) {
      ring_->poll();
      if (polled_ring_ != nullptr) polled_ring_->poll();
      IoList done;
      channel_->poll(done);
      while (done.pop() != nullptr) --expected_;
      if (each_round) each_round(round);
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << expected_ << " are missing";
    }
    EXPECT_EQ(ring_->in_flight(), 0u);
    EXPECT_FALSE(channel_->pending());
  }
  std::int32_t run_one(Operation operation, std::uint64_t offset, std::byte* at,
                       std::size_t bytes) {
    Io& io = add_data(operation, offset, at, bytes);
    run();
    return io.result;
  }

  [[nodiscard]] UringChannel& channel() { return *channel_; }
  [[nodiscard]] Uring& ring() { return *ring_; }

  QueueStatistics statistics;
  UringOptions had;
  PinChoice pins{nullptr};

 private:
  std::unique_ptr<base::Reactor> reactor_;
  std::unique_ptr<Uring> ring_, polled_ring_;
  std::vector<Uring*> rings_, polled_;
  std::unique_ptr<UringChannel> channel_;
  std::list<Operands> operands_;
  IoList burst_;
  std::size_t expected_ = 0;
};

inline Config config_for(const ScratchFile& file, DirectMode direct) {
  Config out;
  out.name = "test";
  out.path = file.path();
  out.direct = direct;
  return out;
}

inline UringTarget target_of(const Image& image) {
  return {image.buffered.get(), image.direct.get(), image.memory_alignment, image.offset_alignment};
}

}  // namespace millrace::blk::testing

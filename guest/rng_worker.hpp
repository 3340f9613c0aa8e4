// RngWorker: fills a queue's buffers with random bytes, so many a visit and so many a second.
#pragma once

#include <array>
#include <memory>

#include "base/counter.hpp"
#include "guest/allowance.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::guest {

// Thread: written by the queue's reactor, read by any.
struct RngCounters {
  base::Counter requests, bytes;
  base::Counter throttled;  // times that the allowance was spent
};

class RngWorker final : public virtio::QueueWorker {
 public:
  // Bytes for one buffer: a driver asks again for the rest (§5.4.6.1 allows it).
  static constexpr std::size_t answer_max = 1024;
  // Bytes a visit: some ten microseconds.
  static constexpr std::size_t visit_max = 4096;
  // Bytes that a driver which has not asked for a while gets at once.
  static constexpr std::uint64_t burst = 64 << 10;

  // Control. Both outlive it.
  RngWorker(std::unique_ptr<virtio::Queue> queue, Allowance& allowance, RngCounters& counters);

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  [[nodiscard]] std::uint64_t sleep_ns_max() const noexcept override;

  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override { quiescing_ = true; }
  [[nodiscard]] bool drained() noexcept override { return true; }  // nothing outlives a visit
  [[nodiscard]] bool memory_released() noexcept override { return true; }
  void detached(base::Reactor& reactor) noexcept override;

 private:
  [[nodiscard]] bool takes() const noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  template <class RingType>
  std::size_t serve(RingType& ring) noexcept;
  [[nodiscard]] std::size_t fill(std::uint64_t wanted) noexcept;

  Allowance& allowance_;
  RngCounters& counters_;
  std::unique_ptr<virtio::Chain> chain_;
  std::array<std::byte, answer_max> bytes_{};
  bool waiting_ = false;  // for the allowance
  bool quiescing_ = false;
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::guest

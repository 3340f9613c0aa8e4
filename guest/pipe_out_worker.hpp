// PipeOutWorker: a queue whose buffers a driver fills, into a Pipe.
#pragma once

#include <memory>

#include "guest/pipe.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::guest {

class PipeOutWorker final : public virtio::QueueWorker {
 public:
  static constexpr unsigned chains_a_visit = 32;

  // Control. `message`: 0 for a stream; else every buffer is a message of which that many bytes
  // are taken, and a shorter one is a fault.
  PipeOutWorker(std::unique_ptr<virtio::Queue> queue, Pipe& pipe, std::size_t message = 0);

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
  void attached(base::Reactor& reactor) noexcept override;
  void enabled_changed(bool) noexcept override {}
  void quiesce() noexcept override { quiescing_ = true; }
  [[nodiscard]] bool drained() noexcept override { return !held_; }
  [[nodiscard]] bool memory_released() noexcept override;
  void detached(base::Reactor& reactor) noexcept override;

 private:
  [[nodiscard]] bool takes() const noexcept {
    return !quiescing_ && queue().enabled() && queue().fault() == virtio::Fault::none;
  }
  template <class RingType>
  bool accept(RingType& ring, virtio::Mark before) noexcept;
  template <class RingType>
  bool go_on(RingType& ring) noexcept;
  template <class RingType>
  void give(RingType& ring, std::size_t dropped) noexcept;
  std::size_t push(std::size_t offset, std::size_t count) noexcept;

  Pipe& pipe_;
  const std::size_t message_;
  std::unique_ptr<virtio::Chain> chain_;
  std::size_t needed_ = 0;  // bytes of room that the next buffer waits for; 0: it does not
  // A buffer larger than the pipe goes in pieces, and is the driver's again after the last one.
  bool held_ = false, abandon_ = false;
  std::size_t offset_ = 0;
  bool quiescing_ = false;
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::guest

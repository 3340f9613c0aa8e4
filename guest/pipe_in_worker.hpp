// PipeInWorker: a queue of buffers for a driver to read, from a Pipe.
#pragma once

#include <memory>

#include "guest/pipe.hpp"
#include "virtio/chain.hpp"
#include "virtio/queue.hpp"

namespace millrace::guest {

// A message in a pipe: this, then its bytes; both are pushed at once.
struct FrameHeader {
  std::uint16_t bytes;
};

class PipeInWorker final : public virtio::QueueWorker {
 public:
  static constexpr unsigned chains_a_visit = 32;

  // Control. `framed`: a message to a buffer; one that does not fit is the driver's fault.
  PipeInWorker(std::unique_ptr<virtio::Queue> queue, Pipe& pipe, bool framed = false);

  bool poll() noexcept override;
  bool arm() noexcept override;
  void disarm() noexcept override;
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
  bool fill() noexcept;
  // Bytes for *chain_; 0: it does not fit.
  [[nodiscard]] std::size_t next_size() noexcept;
  void put(std::size_t count) noexcept;

  Pipe& pipe_;
  const bool framed_;
  std::unique_ptr<virtio::Chain> chain_;
  bool quiescing_ = false;
  base::Reactor* reactor_ = nullptr;
};

}  // namespace millrace::guest

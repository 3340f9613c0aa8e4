// The memory balloon, virtio 1.2 §5.5: takes memory from a guest on the operator's word, and gives
// back to the host what the guest itself says is free (page reporting), and what a balloon holds.
//
// The size that a command set outlives this process, in a record that the front-end holds: what the
// guest gave up stays given up. Thread: control.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "guest/balloon_worker.hpp"
#include "guest/device.hpp"
#include "guest/reclaimer.hpp"
#include "guest/stats_worker.hpp"
#include "virtio/kept_area.hpp"
#include "virtio/wire/balloon.hpp"

namespace millrace::guest {

class Balloon final : public Device {
 public:
  Balloon(const std::string& name, const BalloonSettings& settings, const Means& means);

  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::balloon; }
  [[nodiscard]] std::uint64_t features() const override;
  void set_features(std::uint64_t features) override;
  [[nodiscard]] std::span<const std::byte> config() const override;
  base::Result<void> write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  [[nodiscard]] std::vector<Figure> figures() const override;
  base::Result<std::uint64_t> set_size(std::uint64_t bytes) override;
  [[nodiscard]] bool keeps_state() const override { return true; }
  void set_kept(std::shared_ptr<virtio::KeptArea> area) override;

 protected:
  [[nodiscard]] std::unique_ptr<virtio::QueueWorker> make_worker(
      std::unique_ptr<virtio::Queue> queue) override;

 private:
  // Inflate and deflate; then those that were negotiated, without gaps, as drivers number them.
  static constexpr unsigned queues_max = 4;
  // Where the statistics queue is; queues_max: nowhere.
  [[nodiscard]] unsigned stats_queue() const;
  [[nodiscard]] unsigned report_queue() const;
  void want_stats();
  void keep();

  const BalloonSettings settings_;
  Reclaimer& reclaimer_;
  virtio::wire::BalloonConfig space_{};
  std::shared_ptr<virtio::KeptArea> kept_;
  bool commanded_ = false;  // a command of this process set the size
  std::array<BalloonCounters, 3> counters_;
  ReclaimCounters reclaimed_;
  BalloonStats stats_;
  base::EventLoop::Timer stats_timer_;
};

}  // namespace millrace::guest

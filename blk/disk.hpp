// Disk: blk::Device over any Backend. Device::make makes the backend; tests bring their own.
#pragma once

#include <memory>
#include <vector>

#include "blk/backend.hpp"
#include "blk/device.hpp"
#include "blk/worker.hpp"
#include "virtio/wire/blk.hpp"

namespace millrace::blk {

class Disk final : public Device {
 public:
  // Checks what of `config` concerns any backend.
  static base::Result<std::unique_ptr<Device>> make(const Config& config, base::ReactorPool& pool,
                                                    std::unique_ptr<Backend> backend);

  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::blk; }
  [[nodiscard]] std::uint64_t features() const override;
  void set_features(std::uint64_t features) override;
  [[nodiscard]] std::span<const std::byte> config() const override;
  void start_queue(virtio::QueueStart start, Done done) override;
  void stop_queue(unsigned index, Stopped stopped) override;
  void set_memory(std::shared_ptr<const virtio::GuestMemory> memory, Done done) override;
  base::Result<void> write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  [[nodiscard]] const Config& blk_config() const override { return config_; }
  [[nodiscard]] Statistics statistics() const override;
  [[nodiscard]] BackendStatus backend_status() const override { return backend_->status(); }
  base::Result<std::uint64_t> resize(std::uint64_t bytes) override;

 protected:
  [[nodiscard]] std::unique_ptr<virtio::QueueWorker> make_worker(
      std::unique_ptr<virtio::Queue> queue) override;

 private:
  Disk(const Config& config, base::ReactorPool& pool, std::unique_ptr<Backend> backend);
  void fill_rules();
  void fill_config_space();
  void apply_write_mode();
  [[nodiscard]] bool any_started() const;

  Config config_;
  std::unique_ptr<Backend> backend_;
  DiskState state_;
  virtio::wire::BlkConfig space_{};
  std::vector<std::unique_ptr<QueueStatistics>> statistics_;
  std::shared_ptr<const Disk*> self_;  // gone with the disk: answers may come after it
};

}  // namespace millrace::blk

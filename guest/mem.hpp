// The memory device, virtio 1.2 §5.15 (virtio-mem): a region of a guest's addresses of which the
// guest has as much as the operator says, in blocks that it plugs and unplugs; what it unplugs is
// the host's again. Thread: control.
//
// Where the region lies is the VMM's to say: it writes the place, the first fields of the
// configuration space, before the driver comes. A reset of the device changes no block (a driver
// may be loaded again); the end of the front-end's session, which a machine's reset is, forgets
// them all.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "guest/device.hpp"
#include "guest/mem_state.hpp"

namespace millrace::guest {

class Mem final : public Device {
 public:
  Mem(const std::string& name, const MemSettings& settings, const Means& means);

  [[nodiscard]] virtio::DeviceKind kind() const override { return virtio::DeviceKind::mem; }
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::byte> config() const override;
  base::Result<void> write_config(std::uint32_t offset, std::span<const std::byte> bytes) override;
  [[nodiscard]] bool keeps_state() const override { return true; }
  void set_kept(std::shared_ptr<virtio::KeptArea> area) override;
  void set_connected(bool connected) override;
  [[nodiscard]] std::vector<Figure> figures() const override;
  base::Result<std::uint64_t> set_size(std::uint64_t bytes) override;

 protected:
  [[nodiscard]] std::unique_ptr<virtio::QueueWorker> make_worker(
      std::unique_ptr<virtio::Queue> queue) override;

 private:
  Reclaimer& reclaimer_;
  MemState state_;
  mutable MemState::Config space_{};  // as config() answered it
};

}  // namespace millrace::guest

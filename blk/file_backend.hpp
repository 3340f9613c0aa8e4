// FileBackend: a disk in a raw file or on a block device, through io_uring.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "blk/backend.hpp"
#include "blk/disk_pins.hpp"
#include "blk/image.hpp"
#include "blk/uring.hpp"
#include "blk/uring_channel.hpp"
#include "blk/uring_pool.hpp"

namespace millrace::blk {

class FileBackend final : public Backend {
 public:
  // Opens and locks config.path, and gets a ring on every reactor.
  static base::Result<std::unique_ptr<Backend>> make(const Config& config, unsigned reactors,
                                                     UringPool& rings, bool refuse_direct = false);

  [[nodiscard]] const Geometry& geometry() const override { return image_.geometry; }
  [[nodiscard]] BackendStatus status() const override;
  [[nodiscard]] std::unique_ptr<Channel> make_channel(unsigned depth,
                                                      QueueStatistics& statistics) override;
  void use_memory(const std::shared_ptr<const virtio::GuestMemory>& memory) override;
  void leave_memory() override;
  void give_memory_back() override;
  base::Result<std::uint64_t> resize(std::uint64_t bytes) override;

 private:
  FileBackend() = default;
  [[nodiscard]] UringTarget target() const;
  base::Result<void> choose_polling(const Config& config, unsigned reactors, UringPool& rings);
  base::Result<void> choose_pinning(const Config& config, UringPool& rings);

  Image image_;
  std::string path_, io_;
  bool readonly_ = false;
  std::vector<Uring*> rings_;       // by reactor
  std::vector<Uring*> polled_;      // by reactor; empty: none with iopoll
  std::unique_ptr<DiskPins> pins_;  // null: nothing is pinned
  std::string pins_off_;            // why not, where it might
  std::vector<std::string> ring_names_;
};

}  // namespace millrace::blk

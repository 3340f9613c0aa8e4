// MemoryBackend: a disk in this process's memory ("ram"), or one without any ("null").
//
// ram: anonymous memory, given by the kernel when first written and given back by DISCARD and by
// WRITE_ZEROES with unmap; gone when the daemon ends. null: writes vanish and reads give zeroes (a
// guest must never see what its buffer held before). Both copy inside the visit, a bounded number
// of bytes.
#pragma once

#include <memory>

#include "blk/backend.hpp"
#include "blk/config.hpp"

namespace millrace::blk {

class MemoryBackend final : public Backend {
 public:
  // `bytes`: a multiple of 512. ram may later grow to four times that, and to 64 GiB at least.
  static base::Result<std::unique_ptr<Backend>> make_ram(std::uint64_t bytes, bool readonly);
  static base::Result<std::unique_ptr<Backend>> make_null(std::uint64_t bytes, bool readonly);
  ~MemoryBackend() override;
  MemoryBackend(const MemoryBackend&) = delete;
  MemoryBackend& operator=(const MemoryBackend&) = delete;

  [[nodiscard]] const Geometry& geometry() const override { return geometry_; }
  [[nodiscard]] BackendStatus status() const override;
  [[nodiscard]] std::unique_ptr<Channel> make_channel(unsigned depth, QueueStatistics&) override;
  base::Result<std::uint64_t> resize(std::uint64_t bytes) override;

 private:
  MemoryBackend() = default;
  Geometry geometry_;
  bool readonly_ = false;
  std::byte* bytes_ = nullptr;  // null: nullptr
  std::uint64_t reserved_ = 0;
};

}  // namespace millrace::blk

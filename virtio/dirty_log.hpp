// DirtyLog: the migration bitmap a front-end shares (vhost-user "Migration"): one bit per 4 KiB
// page.
//
// A bit is set after the data was written, with an atomic OR, because the front-end clears bits
// while we set them. Thread: any reactor; built and dropped by control.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/mapping.hpp"

namespace millrace::virtio {

class DirtyLog {
 public:
  static constexpr std::uint64_t page_size = 4096;

  explicit DirtyLog(std::shared_ptr<const base::Mapping> bitmap) : bitmap_{std::move(bitmap)} {}
  // Marks every page of [guest_address, guest_address + size). What lies past the bitmap is ignored
  // and counted by the caller's check of covers().
  void mark(std::uint64_t guest_address, std::uint64_t size) noexcept;
  [[nodiscard]] bool covers(std::uint64_t guest_end) const noexcept {
    return guest_end <= bitmap_->size() * 8 * page_size;
  }

 private:
  std::shared_ptr<const base::Mapping> bitmap_;
};

}  // namespace millrace::virtio

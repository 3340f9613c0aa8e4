// BouncePool: a queue's aligned buffers for transfers whose guest memory is not aligned enough for
// O_DIRECT. Made by control; its pages are first touched, and so placed, by the reactor that uses
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/mapping.hpp"
#include "base/result.hpp"
#include "blk/limits.hpp"

namespace millrace::blk {

class BouncePool {
 public:
  static base::Result<std::unique_ptr<BouncePool>> make() {
    auto memory =
        base::Mapping::anonymous(std::uint64_t{limits::bounce_buffers} * limits::bounce_bytes);
    if (!memory) return base::Unexpected{memory.error()};
    return std::unique_ptr<BouncePool>{new BouncePool{std::move(*memory)}};
  }
  // -1: all are in use.
  [[nodiscard]] int take() noexcept { return free_count_ == 0 ? -1 : free_[--free_count_]; }
  void give(int buffer) noexcept {
    CHECK(free_count_ < limits::bounce_buffers);
    free_[free_count_++] = static_cast<std::int16_t>(buffer);
  }
  [[nodiscard]] std::byte* at(int buffer) const noexcept {
    return memory_->data() + static_cast<std::size_t>(buffer) * limits::bounce_bytes;
  }

 private:
  explicit BouncePool(std::shared_ptr<const base::Mapping> memory) : memory_{std::move(memory)} {
    for (auto& buffer : free_) buffer = static_cast<std::int16_t>(free_count_++);
  }
  std::shared_ptr<const base::Mapping> memory_;
  std::int16_t free_[limits::bounce_buffers];
  unsigned free_count_ = 0;
};

}  // namespace millrace::blk

// Counter: one writer (its reactor), any number of readers, no read-modify-write instruction.
#pragma once

#include <atomic>
#include <cstdint>

namespace millrace::base {

class Counter {
 public:
  // Thread: the owner only.
  void add(std::uint64_t amount = 1) noexcept {
    value_.store(value_.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
  void set(std::uint64_t value) noexcept { value_.store(value, std::memory_order_relaxed); }
  // Thread: any.
  [[nodiscard]] std::uint64_t get() const noexcept {
    return value_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t> value_{0};
};

}  // namespace millrace::base

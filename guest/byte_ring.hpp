// ByteRing: a bounded stream of bytes from one thread to another, without a lock. Each side moves
// its own mark only after it is done with the bytes, so nothing is ever read half written.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

#include "base/check.hpp"

namespace millrace::guest {

class ByteRing {
 public:
  // Bytes that follow each other here, in up to two pieces.
  template <class Byte>
  using Pieces = std::array<std::span<Byte>, 2>;

  // `capacity`: a power of two. Control (allocates).
  explicit ByteRing(std::size_t capacity)
      : bytes_{std::make_unique<std::byte[]>(capacity)}, capacity_{capacity} {
    CHECK(std::has_single_bit(capacity));
  }

  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  // Thread: either. What the other side does meanwhile makes it less than the truth, never more,
  // for the consumer who asks for the size and for the producer who asks for the room.
  [[nodiscard]] std::size_t size() const noexcept {
    const auto first = first_.load(std::memory_order_acquire);
    return end_.load(std::memory_order_acquire) - first;
  }
  [[nodiscard]] std::size_t room() const noexcept {
    const auto end = end_.load(std::memory_order_acquire);
    return capacity_ - (end - first_.load(std::memory_order_acquire));
  }

  // --- Producer ---
  [[nodiscard]] Pieces<std::byte> free_pieces() noexcept {
    return cut<std::byte>(end_.load(std::memory_order_relaxed), room());
  }
  // The first `count` bytes of the free pieces were filled.
  void pushed(std::size_t count) noexcept {
    end_.store(end_.load(std::memory_order_relaxed) + count, std::memory_order_release);
  }
  // All of them or none.
  [[nodiscard]] bool push(std::span<const std::byte> bytes) noexcept {
    if (bytes.size() > room()) return false;
    const auto pieces = free_pieces();
    const auto first = std::min(bytes.size(), pieces[0].size());
    std::ranges::copy(bytes.first(first), pieces[0].begin());
    std::ranges::copy(bytes.subspan(first), pieces[1].begin());
    pushed(bytes.size());
    return true;
  }

  // --- Consumer ---
  [[nodiscard]] Pieces<const std::byte> pieces() const noexcept {
    return cut<const std::byte>(first_.load(std::memory_order_relaxed), size());
  }
  void popped(std::size_t count) noexcept {
    first_.store(first_.load(std::memory_order_relaxed) + count, std::memory_order_release);
  }
  // Copies without taking; false where there are not so many.
  [[nodiscard]] bool peek(std::span<std::byte> out) const noexcept {
    if (out.size() > size()) return false;
    const auto from = pieces();
    const auto first = std::min(out.size(), from[0].size());
    std::ranges::copy(from[0].first(first), out.begin());
    std::ranges::copy(from[1].first(out.size() - first), out.begin() + static_cast<long>(first));
    return true;
  }

 private:
  template <class Byte>
  [[nodiscard]] Pieces<Byte> cut(std::size_t from, std::size_t count) const noexcept {
    const auto at = from & (capacity_ - 1);
    const auto first = std::min(count, capacity_ - at);
    return {std::span<Byte>{bytes_.get() + at, first},
            std::span<Byte>{bytes_.get(), count - first}};
  }

  std::unique_ptr<std::byte[]> bytes_;
  std::size_t capacity_;
  // Both only grow, and wrap around with their type.
  alignas(64) std::atomic<std::size_t> first_{0};
  alignas(64) std::atomic<std::size_t> end_{0};
};

}  // namespace millrace::guest

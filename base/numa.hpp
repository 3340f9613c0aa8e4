// Memory near a processor. On a machine without NUMA everything works and nothing is near.
// Thread: control.
#pragma once

#include <cstddef>
#include <utility>

#include "base/result.hpp"

namespace millrace::base {

inline constexpr int any_node = -1;

// The NUMA node of `core`, or any_node where that is unknown.
[[nodiscard]] int node_of_core(int core) noexcept;

// NumaBuffer owns zeroed, page-aligned memory, taken from one node as long as that has some.
class [[nodiscard]] NumaBuffer {
 public:
  NumaBuffer() = default;
  // `size` is rounded up to whole pages. `node`: any_node, or from node_of_core().
  static Result<NumaBuffer> make(std::size_t size, int node);
  NumaBuffer(NumaBuffer&& other) noexcept
      : data_{std::exchange(other.data_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
  NumaBuffer& operator=(NumaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~NumaBuffer();

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace millrace::base

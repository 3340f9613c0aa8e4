// FuzzInput: a fuzzer's bytes, taken from the front. After the end everything is zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace millrace::vmm::testing {

class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : bytes_{data, size} {}

  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  [[nodiscard]] std::size_t left() const { return bytes_.size(); }
  template <class T>
  T take() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    const auto size = std::min(sizeof value, bytes_.size());
    if (size != 0) std::memcpy(&value, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return value;
  }
  std::vector<std::byte> take_bytes(std::size_t count) {
    std::vector<std::byte> out(count);
    const auto size = std::min(count, bytes_.size());
    if (size != 0) std::memcpy(out.data(), bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return out;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace millrace::vmm::testing

// Le<T> and Be<T>: integers with a byte order. Conversion is spelled, never implicit.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>

namespace millrace::base {

template <std::unsigned_integral T>
[[nodiscard]] constexpr T byte_swap(T value) {
  if constexpr (sizeof(T) == 1) return value;
  if constexpr (sizeof(T) == 2) return __builtin_bswap16(value);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
  if constexpr (sizeof(T) == 8) return __builtin_bswap64(value);
}

template <std::unsigned_integral T, std::endian Order>
class Ordered {
 public:
  using Host = T;
  Ordered() = default;
  explicit constexpr Ordered(T host) : raw_{flip(host)} {}
  [[nodiscard]] constexpr T host() const { return flip(raw_); }
  friend constexpr bool operator==(Ordered, Ordered) = default;

 private:
  static constexpr T flip(T value) {
    return Order == std::endian::native ? value : byte_swap(value);
  }
  T raw_;
};

template <std::unsigned_integral T>
using Le = Ordered<T, std::endian::little>;
template <std::unsigned_integral T>
using Be = Ordered<T, std::endian::big>;

using le16 = Le<std::uint16_t>;
using le32 = Le<std::uint32_t>;
using le64 = Le<std::uint64_t>;
using be16 = Be<std::uint16_t>;
using be32 = Be<std::uint32_t>;

}  // namespace millrace::base

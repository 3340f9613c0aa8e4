#include "switch/toeplitz.hpp"

#include <algorithm>

namespace millrace::vswitch {

Toeplitz::Toeplitz(const Key& key) noexcept {
  // The key's 32 bits from `bit` on; behind its end there are zeros.
  const auto window = [&key](std::size_t bit) {
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < 5; ++i) {
      const std::size_t at = bit / 8 + i;
      bits = bits << 8 | (at < key.size() ? key[at] : 0u);
    }
    return static_cast<std::uint32_t>(bits >> (8 - bit % 8));
  };
  for (std::size_t half = 0; half < shares_.size(); ++half) {
    for (unsigned value = 0; value < 16; ++value) {
      std::uint32_t share = 0;
      for (unsigned bit = 0; bit < 4; ++bit) {
        if ((value & (8u >> bit)) != 0) share ^= window(4 * half + bit);
      }
      shares_[half][value] = share;
    }
  }
}

std::uint32_t Toeplitz::operator()(std::span<const std::byte> input) const noexcept {
  std::uint32_t hash = 0;
  const std::size_t size = std::min(input.size(), input_max);
  for (std::size_t i = 0; i < size; ++i) {
    const auto value = std::to_integer<unsigned>(input[i]);
    hash ^= shares_[2 * i][value >> 4] ^ shares_[2 * i + 1][value & 0xf];
  }
  return hash;
}

}  // namespace millrace::vswitch

// Toeplitz: the hash of receive side scaling, over addresses and ports (virtio 1.2 §5.1.6.4.3).
//
// For each bit of the input that is set, the 32 bits of the key that begin at that bit's place are
// XORed in. What each value of each half byte contributes is computed once, from the key.
// Thread: any; constant once made. Never allocates.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace::vswitch {

class Toeplitz {
 public:
  static constexpr std::size_t key_size = 40;
  static constexpr std::size_t input_max = 36;  // two IPv6 addresses and two ports
  using Key = std::array<std::uint8_t, key_size>;

  explicit Toeplitz(const Key& key) noexcept;
  // At most input_max bytes; more are not looked at.
  [[nodiscard]] std::uint32_t operator()(std::span<const std::byte> input) const noexcept;

 private:
  std::array<std::array<std::uint32_t, 16>, 2 * input_max> shares_;
};

}  // namespace millrace::vswitch

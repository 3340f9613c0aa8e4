// copy_header: frame headers, copied without a call.
#pragma once

#include <cstddef>
#include <cstring>

#include "switch/packet.hpp"

namespace millrace::vswitch {

// Copies up to Packet::header_max bytes, in blocks of fixed sizes that overlap. A byte of `in` may
// be read twice, and one of the two is what arrives.
template <std::size_t Block>
[[gnu::always_inline]] inline void copy_both_ends(std::byte* out, const std::byte* in,
                                                  std::size_t size) noexcept {
  std::memcpy(out, in, Block);
  std::memcpy(out + size - Block, in + size - Block, Block);
}
[[gnu::always_inline]] inline void copy_header(std::byte* out, const std::byte* in,
                                               std::size_t size) noexcept {
  static_assert(Packet::header_max <= 128);
  if (size > 64) return copy_both_ends<64>(out, in, size);
  if (size >= 32) return copy_both_ends<32>(out, in, size);
  if (size >= 16) return copy_both_ends<16>(out, in, size);
  std::memcpy(out, in, size);
}

}  // namespace millrace::vswitch

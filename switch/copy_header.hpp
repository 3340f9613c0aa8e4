// copy_header: frame headers, copied without a call.
#pragma once

#include <cstddef>
#include <cstring>

#include "switch/packet.hpp"

namespace millrace::vswitch {

// Copies up to Packet::header_max bytes, in blocks of fixed sizes that overlap. A byte of `in` may
// be read twice, and one of the two is what arrives.
[[gnu::always_inline]] inline void copy_header(std::byte* out, const std::byte* in,
                                               std::size_t size) noexcept {
  const auto both_ends = [out, in, size]<std::size_t Block>() {
    std::memcpy(out, in, Block);
    std::memcpy(out + size - Block, in + size - Block, Block);
  };
  static_assert(Packet::header_max <= 128);
  if (size >= 64) return both_ends.template operator()<64>();
  if (size >= 32) return both_ends.template operator()<32>();
  if (size >= 16) return both_ends.template operator()<16>();
  std::memcpy(out, in, size);
}

}  // namespace millrace::vswitch

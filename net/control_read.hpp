// Reads the data of a control queue's command. Thread: one reactor.
#pragma once

#include <cstddef>
#include <span>

#include "virtio/chain.hpp"

namespace millrace::net {

// The bytes at `offset` of what the driver wrote; false where they are not all there.
template <class T>
[[nodiscard]] bool read_at(const virtio::Chain& chain, std::size_t offset, T& out) noexcept {
  const auto bytes = std::as_writable_bytes(std::span{&out, 1});
  return virtio::copy_from(chain.readable(), offset, bytes) == bytes.size();
}

}  // namespace millrace::net

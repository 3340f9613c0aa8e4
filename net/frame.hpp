// Frame: reads the bytes of a packet in order: our copy of its headers, then its payload views.
// Thread: one reactor.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "switch/copy_header.hpp"
#include "switch/packet.hpp"

namespace millrace::net {

using vswitch::copy_header;

class Frame {
 public:
  // `packet` must outlive the Frame.
  explicit Frame(const vswitch::Packet& packet) noexcept
      : packet_{packet}, left_{packet.length}, current_{packet.headers()} {}

  // With two bytes of the headers replaced, in network order: a checksum that was completed.
  // False: they do not lie in the headers that were fetched.
  [[nodiscard]] bool patch(std::size_t offset, std::uint16_t value) noexcept {
    const std::size_t size = packet_.header_size;
    if (size < 2 || offset > size - 2) return false;
    std::memcpy(patched_.data(), packet_.header.data(), size);
    patched_[offset] = static_cast<std::byte>(value >> 8);
    patched_[offset + 1] = static_cast<std::byte>(value & 0xff);
    is_patched_ = true;
    rewind();
    return true;
  }

  // Copies up to out.size() bytes; returns how many, fewer only at the end.
  std::size_t read(std::span<std::byte> out) noexcept {
    std::size_t done = 0;
    while (done < out.size() && left_ > 0) {
      if (current_.empty() && !advance()) break;
      const std::size_t part = std::min({out.size() - done, current_.size(), left_});
      std::memcpy(out.data() + done, current_.data(), part);
      current_ = current_.subspan(part);
      done += part;
      left_ -= part;
    }
    return done;
  }

  // Back to the first byte.
  void rewind() noexcept {
    left_ = packet_.length;
    view_ = 0;
    current_ = {is_patched_ ? patched_.data() : packet_.header.data(), packet_.header_size};
  }
  [[nodiscard]] std::size_t left() const noexcept { return left_; }
  [[nodiscard]] std::uint32_t length() const noexcept { return packet_.length; }

 private:
  bool advance() noexcept {
    while (view_ < packet_.view_count) {
      const vswitch::View& view = packet_.views[view_++];
      current_ = {view.data, view.size};
      if (!current_.empty()) return true;
    }
    return false;
  }

  const vswitch::Packet& packet_;
  std::size_t left_;
  std::span<const std::byte> current_;
  std::uint16_t view_ = 0;
  bool is_patched_ = false;
  std::array<std::byte, vswitch::Packet::header_max> patched_;
};

}  // namespace millrace::net

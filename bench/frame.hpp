// The frames that a NetLoad sends: Ethernet, IPv4, UDP (TCP where they shall be cut up), then the
// frame's number and the moment it was put up, then a pattern.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "virtio/wire/net.hpp"

namespace millrace::bench {

struct Stamp {
  std::uint64_t number = 0, cycles = 0;
};

class FrameShape {
 public:
  using Mac = std::array<std::uint8_t, 6>;
  static constexpr std::uint32_t least = 60, most = 65'535 + 14;

  // `size` from least to most; `tso`: with the offload request that a frame of TCP needs to be cut
  // into segments of 1448 bytes.
  FrameShape(const Mac& from, const Mac& to, std::uint32_t size, bool tso);

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(bytes_.size()); }
  [[nodiscard]] const virtio::wire::NetHeader& header() const { return header_; }
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] std::size_t stamp_at() const { return stamp_at_; }  // where the headers end
  [[nodiscard]] bool is_tcp() const { return header_.flags != 0; }
  // Whether `received` (any length) is such a frame, whatever its stamp is. Of one with an offload
  // request the checksums are not looked at: a switch may complete them.
  [[nodiscard]] bool matches(std::span<const std::byte> received) const;

 private:
  virtio::wire::NetHeader header_{};
  std::vector<std::byte> bytes_;
  std::size_t stamp_at_ = 0;
};

}  // namespace millrace::bench

// Offload: between the virtio_net_hdr (virtio 1.2 §5.1.6) and the switch's view of a packet.
// Pure functions; any thread; never allocate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "switch/packet.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {

// Bytes of the virtio_net_hdr under `features`: decided here and nowhere else.
[[nodiscard]] constexpr std::size_t header_size(std::uint64_t features) noexcept {
  using virtio::wire::net_feature::mrg_rxbuf;
  if ((features & virtio::wire::net_feature::hash_report) != 0) {
    return virtio::wire::net_header_size_hash;
  }
  const bool long_header = (features & (virtio::feature::version_1 | mrg_rxbuf)) != 0;
  return long_header ? virtio::wire::net_header_size : virtio::wire::net_header_size_legacy;
}

// A driver's request on transmit. False: it asks for what was not negotiated or contradicts itself
// (§5.1.6.2.1). The Bridge checks it against the frame afterwards.
[[nodiscard]] bool read_some_request(const virtio::wire::NetHeader& header, std::uint64_t features,
                                     vswitch::Offload& offload) noexcept;
[[nodiscard]] inline bool read_request(const virtio::wire::NetHeader& header,
                                       std::uint64_t features, vswitch::Offload& offload) noexcept {
  const bool some = (header.flags & virtio::wire::net_header_flag::needs_csum) != 0 ||
                    header.gso_type != virtio::wire::net_gso::none;
  if (some) return read_some_request(header, features, offload);
  offload = {};
  return true;
}

// What a receiving driver takes as it is.
struct Acceptance {
  bool checksum = false;  // partial checksums, and notes that one was verified
  bool tso4 = false, tso6 = false, ecn = false, uso4 = false, uso6 = false;

  [[nodiscard]] static Acceptance of(std::uint64_t features) noexcept;
  // True if `packet` needs no segmentation for this receiver.
  [[nodiscard]] bool takes_whole(const vswitch::Packet& packet) const noexcept;
};

// The header in its two words: one that is stored field by field and then copied makes the copy
// wait for all of the stores.
[[nodiscard]] inline virtio::wire::NetHeader compose(base::le64 low, base::le32 high) noexcept {
  virtio::wire::NetHeader header;
  auto* const bytes = reinterpret_cast<std::byte*>(&header);
  std::memcpy(bytes, &low, sizeof low);
  std::memcpy(bytes + sizeof low, &high, sizeof high);
  return header;
}
// The header that a receiver gets with `packet`, which it takes as it is (§5.1.6.4.1), in so many
// buffers.
[[nodiscard]] virtio::wire::NetHeader describe_some(const vswitch::Offload& offload,
                                                    const Acceptance& acceptance,
                                                    std::uint16_t buffers) noexcept;
[[nodiscard, gnu::always_inline]] inline virtio::wire::NetHeader describe(
    const vswitch::Offload& offload, const Acceptance& acceptance,
    std::uint16_t buffers = 1) noexcept {
  if (!offload.done() || offload.checksum_verified) {
    return describe_some(offload, acceptance, buffers);
  }
  return compose({}, base::le32{std::uint32_t{buffers} << 16});
}

// Negotiated offloads as words for status: "csum guest_csum tso4 ..." or "none". Control.
[[nodiscard]] std::string offload_names(std::uint64_t features);

}  // namespace millrace::net

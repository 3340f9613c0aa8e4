// Software offloads: what a receiver lacks is done here, so that no packet is dropped for it.
// Pure functions over fetched headers and payload views; any thread; never allocate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "switch/packet.hpp"

namespace millrace::vswitch {

// RFC 1071 sum (not folded, not inverted) of `bytes` that start at an even offset, added to `sum`.
// Sums count 16-bit words as big-endian numbers: what checksum_fold returns is stored as be16.
[[nodiscard]] std::uint64_t checksum_add(std::span<const std::byte> bytes,
                                         std::uint64_t sum) noexcept;
[[nodiscard]] std::uint16_t checksum_fold(std::uint64_t sum) noexcept;  // folded and inverted

// The L4 checksum over packet bytes [checksum_start, length): store it as be16 at checksum_start +
// checksum_offset. Never 0 (0xffff is its twin, and 0 means "none" in UDP). The field must hold the
// pseudo-header's sum, as a partial checksum does. Needs validate_offload.
[[nodiscard]] std::uint16_t complete_checksum(const Packet& packet) noexcept;

// Parses L2 to L4 of the fetched header: Ethernet, up to two VLAN tags, IPv4 with options, IPv6
// with extension headers (bounded), TCP or UDP. Bounded by header_size.
struct Layers {
  bool valid = false;  // a TCP or UDP header was found whole, and it is no fragment
  bool ipv6 = false;
  std::uint8_t protocol = 0;
  std::uint16_t l2 = 0, l3 = 0, l4 = 0;  // lengths of each header in bytes
};
[[nodiscard]] Layers parse_layers(const Packet& packet) noexcept;

// The RFC 793/768/8200 pseudo-header's sum for `l4_length` bytes of L4 header and payload: what the
// checksum's field holds while the checksum is partial. `layers` are valid.
[[nodiscard]] std::uint16_t pseudo_header_sum(const Packet& packet, const Layers& layers,
                                              std::uint32_t l4_length) noexcept;

// Checks an offload request against the fetched header; false: malformed. The checksum field must
// lie in the fetched header, past every VLAN tag and IP header, so that completing it changes
// nothing a decision was based on. Sets offload.header_length from the parsed headers. GSO of a
// payload that fits one segment becomes Gso::none. Bridge::forward calls it for every packet.
[[nodiscard]] bool validate_offload(Packet& packet) noexcept;

// Walks the segments of a GSO packet. Each segment is a Packet of its own whose headers were
// rewritten (lengths, IP id, TCP sequence and flags, UDP length, checksums left partial) and whose
// payload views lie in the original's: no payload byte outside the fetched header is touched or
// copied. A segment's header_size may be less than header_max. `whole` passed validate_offload and
// outlives the segments.
class Segmenter {
 public:
  explicit Segmenter(const Packet& whole) noexcept;
  // Fills `segment`; false when there are no more. Segment checksums are `checksum_needed`.
  [[nodiscard]] bool next(Packet& segment) noexcept;

 private:
  void rewrite(Packet& segment, std::uint32_t size, bool last) const noexcept;

  const Packet& whole_;
  Layers layers_;
  std::uint32_t offset_;  // payload bytes done
  std::uint32_t index_ = 0;
  std::uint32_t view_ = 0, view_offset_ = 0;
};

// Most segments of one packet: more is a request to burn our time.
inline constexpr std::uint32_t segments_max = 2048;

// A hash over addresses and ports of the fetched header, equal for all packets of a flow. Never 0.
[[nodiscard]] std::uint32_t flow_hash(const Packet& packet) noexcept;

}  // namespace millrace::vswitch

#include "switch/gso.hpp"

#include <algorithm>
#include <cstring>

#include "base/endian.hpp"
#include "switch/header.hpp"

namespace millrace::vswitch {

namespace {

constexpr std::uint8_t tcp_fin = 0x01, tcp_psh = 0x08, tcp_cwr = 0x80;

// Sum of native 16-bit words, folded to 16 bits; an odd last byte counts as the first of a word.
std::uint16_t native_sum(const std::byte* data, std::size_t size) noexcept {
  std::uint64_t low = 0, high = 0;
  for (; size >= 8; data += 8, size -= 8) {
    std::uint64_t word;
    std::memcpy(&word, data, 8);
    low += word & 0xffff'ffffu;
    high += word >> 32;
  }
  std::uint64_t tail = 0;
  std::memcpy(&tail, data, size);
  low += (tail & 0xffff'ffffu) + (tail >> 32);
  std::uint64_t sum = (low & 0xffff'ffffu) + (low >> 32) + (high & 0xffff'ffffu) + (high >> 32);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}

std::uint16_t fold(std::uint64_t sum) noexcept {
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}

// Adds pieces of any size one after another: a piece at an odd offset counts with its bytes
// swapped.
class Summer {
 public:
  void add(const std::byte* data, std::size_t size) noexcept {
    const auto native = native_sum(data, size);
    sum_ += odd_ ? native : base::byte_swap(native);
    odd_ ^= (size & 1) != 0;
  }
  [[nodiscard]] std::uint64_t sum() const noexcept { return sum_; }

 private:
  std::uint64_t sum_ = 0;
  bool odd_ = false;
};

// Follows IPv6 extension headers (RFC 8200 §4). False: no transport header follows in these bytes.
bool skip_extensions(const Packet& packet, std::uint8_t& next, std::size_t& at) noexcept {
  for (unsigned i = 0; i < 8; ++i) {
    const bool authentication = next == ip::authentication;
    if (!authentication && next != ip::hop_by_hop && next != ip::routing &&
        next != ip::destination_options) {
      return next != ip::fragment;
    }
    if (at + 8 > packet.header_size) return false;
    const auto units = std::to_integer<std::size_t>(packet.header[at + 1]);
    next = std::to_integer<std::uint8_t>(packet.header[at]);
    at += authentication ? (units + 2) * 4 : (units + 1) * 8;
    if (at > packet.header_size) return false;
  }
  return false;
}

// Finds the end of the IP header; false where no L4 header follows (not IP, a fragment, cut short).
bool parse_ip(const Packet& packet, std::uint16_t type, Layers& out) noexcept {
  const std::size_t l2 = out.l2;
  if (type == ethernet::ipv4 && l2 + 20 <= packet.header_size) {
    const auto first = load8(packet, l2);
    const std::size_t size = (first & 0xfu) * 4u;
    const std::size_t total = load16(packet, l2 + 2);
    if ((first >> 4) != 4 || size < 20 || total < size) return false;
    if (l2 + size > packet.header_size) return false;
    out.l3 = static_cast<std::uint16_t>(size);
    out.protocol = load8(packet, l2 + 9);
    return (load16(packet, l2 + 6) & 0x3fff) == 0;
  }
  if (type == ethernet::ipv6 && l2 + 40 <= packet.header_size) {
    if ((load8(packet, l2) >> 4) != 6) return false;
    out.ipv6 = true;
    std::size_t at = l2 + 40;
    out.protocol = load8(packet, l2 + 6);
    const bool whole = skip_extensions(packet, out.protocol, at);
    out.l3 = static_cast<std::uint16_t>(at - l2);
    return whole;
  }
  return false;
}

std::uint32_t mix(std::uint64_t hash) noexcept {
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccdull;
  hash ^= hash >> 33;
  hash *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<std::uint32_t>(hash >> 32);
}

}  // namespace

std::uint16_t pseudo_header_sum(const Packet& packet, const Layers& layers,
                                std::uint32_t l4_length) noexcept {
  const std::size_t at = layers.l2 + (layers.ipv6 ? 8u : 12u);
  const std::size_t size = layers.ipv6 ? 32 : 8;
  return fold(checksum_add({packet.header.data() + at, size}, 0) + layers.protocol + l4_length);
}

std::uint64_t checksum_add(std::span<const std::byte> bytes, std::uint64_t sum) noexcept {
  return sum + base::byte_swap(native_sum(bytes.data(), bytes.size()));
}

std::uint16_t checksum_fold(std::uint64_t sum) noexcept {
  return static_cast<std::uint16_t>(~fold(sum));
}

std::uint16_t complete_checksum(const Packet& packet) noexcept {
  const std::size_t start = packet.offload.checksum_start;
  Summer summer;
  if (start < packet.header_size) {
    summer.add(packet.header.data() + start, packet.header_size - start);
  }
  for (const View& view : packet.payload()) summer.add(view.data, view.size);
  const auto checksum = checksum_fold(summer.sum());
  return checksum == 0 ? 0xffff : checksum;
}

Layers parse_layers(const Packet& packet) noexcept {
  Layers out;
  std::size_t at = ethernet::header_size;
  if (packet.header_size < at) return out;
  auto type = load16(packet, at - 2);
  for (unsigned tags = 0; tags < 2 && ethernet::is_tag(type); ++tags) {
    if (at + ethernet::tag_size > packet.header_size) break;
    at += ethernet::tag_size;
    type = load16(packet, at - 2);
  }
  out.l2 = static_cast<std::uint16_t>(at);
  if (!parse_ip(packet, type, out)) return out;
  at += out.l3;
  if (out.protocol == ip::udp && at + 8 <= packet.header_size) {
    out.l4 = 8;
    out.valid = true;
  } else if (out.protocol == ip::tcp && at + 20 <= packet.header_size) {
    const std::size_t size = (load8(packet, at + 12) >> 4) * 4u;
    if (size < 20 || at + size > packet.header_size) return out;
    out.l4 = static_cast<std::uint16_t>(size);
    out.valid = true;
  }
  return out;
}

bool validate_offload(Packet& packet) noexcept {
  Offload& offload = packet.offload;
  offload.header_length = 0;
  if (!offload.checksum_needed) return offload.gso == Gso::none;
  const Layers layers = parse_layers(packet);
  const std::size_t start = offload.checksum_start;
  const std::size_t floor = layers.l2 + std::max<std::size_t>(layers.l3, 1);
  if (layers.l2 == 0 || start < floor) return false;
  // Room for one more tag: what lies in the fetched header stays there when the packet gets a tag.
  const std::size_t limit =
      std::min<std::size_t>(packet.header_size, Packet::header_max - ethernet::tag_size);
  if (start + offload.checksum_offset + 2 > limit) return false;
  if (layers.valid) {
    offload.header_length = static_cast<std::uint16_t>(layers.l2 + layers.l3 + layers.l4);
  }
  if (offload.gso == Gso::none) return true;

  const bool udp = offload.gso == Gso::udp_l4;
  if (!layers.valid || offload.gso_size == 0 || offload.header_length > limit) return false;
  if (layers.protocol != (udp ? ip::udp : ip::tcp)) return false;
  if (!udp && layers.ipv6 != (offload.gso == Gso::tcp6)) return false;
  if (start != static_cast<std::size_t>(layers.l2 + layers.l3)) return false;
  if (offload.checksum_offset != (udp ? 6 : 16)) return false;
  const std::uint32_t payload = packet.length - offload.header_length;
  if (payload <= offload.gso_size) {
    offload.gso = Gso::none;
    offload.gso_size = 0;
    offload.ecn = false;
    return true;
  }
  return (payload + offload.gso_size - 1) / offload.gso_size <= segments_max;
}

Segmenter::Segmenter(const Packet& whole) noexcept
    : whole_{whole}, layers_{parse_layers(whole)}, offset_{0} {}

bool Segmenter::next(Packet& segment) noexcept {
  const std::uint32_t headers = layers_.l2 + layers_.l3 + layers_.l4;
  if (!layers_.valid || whole_.offload.gso == Gso::none || whole_.offload.gso_size == 0)
    return false;
  const std::uint32_t total = whole_.length - headers;
  if (offset_ >= total) return false;
  const std::uint32_t size = std::min<std::uint32_t>(whole_.offload.gso_size, total - offset_);
  const std::uint32_t fetched = whole_.header_size - headers;

  // Payload bytes that were fetched with the headers come from there, and only from there.
  std::uint32_t inline_size = 0;
  std::memcpy(segment.header.data(), whole_.header.data(), headers);
  if (offset_ < fetched) {
    inline_size = std::min(size, fetched - offset_);
    std::memcpy(segment.header.data() + headers, whole_.header.data() + headers + offset_,
                inline_size);
  }
  std::uint32_t wanted = size - inline_size;
  segment.view_count = 0;
  while (wanted > 0 && view_ < whole_.view_count) {
    const View& view = whole_.views[view_];
    const std::uint32_t take = std::min(wanted, view.size - view_offset_);
    if (take > 0) segment.views[segment.view_count++] = {view.data + view_offset_, take};
    wanted -= take;
    view_offset_ += take;
    if (view_offset_ == view.size) {
      ++view_;
      view_offset_ = 0;
    }
  }
  const std::uint32_t carried = size - wanted;
  segment.header_size = static_cast<std::uint16_t>(headers + inline_size);
  segment.length = headers + carried;
  segment.source = whole_.source;
  segment.vlan = whole_.vlan;
  segment.priority = whole_.priority;
  segment.flow_hash = whole_.flow_hash;
  segment.completion = whole_.completion;
  segment.token = whole_.token;
  rewrite(segment, carried, offset_ + size >= total);
  offset_ += size;
  ++index_;
  return true;
}

void Segmenter::rewrite(Packet& segment, std::uint32_t size, bool last) const noexcept {
  const std::size_t l3 = layers_.l2, l4 = l3 + layers_.l3;
  const std::uint32_t l4_length = layers_.l4 + size;
  if (layers_.ipv6) {
    store16(segment, l3 + 4, layers_.l3 - 40u + l4_length);
  } else {
    store16(segment, l3 + 2, layers_.l3 + l4_length);
    store16(segment, l3 + 4, load16(segment, l3 + 4) + index_);
    store16(segment, l3 + 10, 0);
    store16(segment, l3 + 10,
            checksum_fold(checksum_add({segment.header.data() + l3, layers_.l3}, 0)));
  }
  const bool udp = layers_.protocol == ip::udp;
  if (udp) {
    store16(segment, l4 + 4, l4_length);
  } else {
    const std::uint32_t sequence =
        (std::uint32_t{load16(segment, l4 + 4)} << 16 | load16(segment, l4 + 6)) + offset_;
    store16(segment, l4 + 4, sequence >> 16);
    store16(segment, l4 + 6, sequence);
    auto flags = std::to_integer<std::uint8_t>(segment.header[l4 + 13]);
    if (!last) flags &= static_cast<std::uint8_t>(~(tcp_fin | tcp_psh));
    if (index_ > 0) flags &= static_cast<std::uint8_t>(~tcp_cwr);
    segment.header[l4 + 13] = std::byte{flags};
  }
  const std::uint16_t field = udp ? 6 : 16;
  store16(segment, l4 + field, pseudo_header_sum(segment, layers_, l4_length));
  segment.offload = {};
  segment.offload.checksum_needed = true;
  segment.offload.checksum_start = static_cast<std::uint16_t>(l4);
  segment.offload.checksum_offset = field;
  segment.offload.header_length = static_cast<std::uint16_t>(l4 + layers_.l4);
}

std::uint32_t flow_hash(const Packet& packet) noexcept {
  const Layers layers = parse_layers(packet);
  std::size_t at = 0, size = std::min<std::size_t>(packet.header_size, 12);
  std::uint64_t hash = 0x9e3779b97f4a7c15ull;
  if (layers.l3 != 0) {
    at = layers.l2 + (layers.ipv6 ? 8u : 12u);
    size = layers.ipv6 ? 32 : 8;
    hash ^= layers.protocol;
  }
  for (; size >= 4; at += 4, size -= 4) {
    std::uint32_t word;
    std::memcpy(&word, packet.header.data() + at, 4);
    hash = (hash ^ word) * 0x9fb21c651e98df25ull;
    hash ^= hash >> 29;
  }
  if (layers.valid) {
    std::uint32_t ports;
    std::memcpy(&ports, packet.header.data() + layers.l2 + layers.l3, 4);
    hash = (hash ^ ports) * 0x9fb21c651e98df25ull;
  }
  const std::uint32_t out = mix(hash);
  return out == 0 ? 1 : out;
}

}  // namespace millrace::vswitch

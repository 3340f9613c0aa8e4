#include "net/offload.hpp"

#include <cstring>
#include <utility>

#include "switch/gso.hpp"

namespace millrace::net {

namespace feature = virtio::wire::net_feature;
namespace flag = virtio::wire::net_header_flag;
namespace gso = virtio::wire::net_gso;
using base::le16;
using vswitch::Gso;
using vswitch::Offload;

namespace {

// The segmentation asked for, if `features` allow it.
bool read_gso(std::uint8_t type, std::uint64_t features, Gso& out) noexcept {
  switch (type) {
    case gso::none:
      out = Gso::none;
      return true;
    case gso::tcp4:
      out = Gso::tcp4;
      return (features & feature::host_tso4) != 0;
    case gso::tcp6:
      out = Gso::tcp6;
      return (features & feature::host_tso6) != 0;
    case gso::udp_l4:
      out = Gso::udp_l4;
      return (features & feature::host_uso) != 0;
    default:
      return false;
  }
}

std::uint8_t write_gso(Gso kind) noexcept {
  switch (kind) {
    case Gso::tcp4:
      return gso::tcp4;
    case Gso::tcp6:
      return gso::tcp6;
    case Gso::udp_l4:
      return gso::udp_l4;
    case Gso::none:
      break;
  }
  return gso::none;
}

}  // namespace

bool read_some_request(const virtio::wire::NetHeader& header, std::uint64_t features,
                       Offload& offload) noexcept {
  offload = Offload{};
  if ((header.flags & flag::needs_csum) != 0) {
    if ((features & feature::csum) == 0) return false;
    offload.checksum_needed = true;
    offload.checksum_start = header.csum_start.host();
    offload.checksum_offset = header.csum_offset.host();
  }
  const auto type = static_cast<std::uint8_t>(header.gso_type & ~gso::ecn);
  if (!read_gso(type, features, offload.gso)) return false;
  offload.ecn = (header.gso_type & gso::ecn) != 0;
  if (offload.gso == Gso::none) return !offload.ecn;
  const bool tcp = offload.gso != Gso::udp_l4;
  if (offload.ecn && (!tcp || (features & feature::host_ecn) == 0)) return false;
  offload.gso_size = header.gso_size.host();
  // Every segment needs its checksum, so the request is part of segmentation (§5.1.6.2.1).
  return offload.checksum_needed && offload.gso_size != 0;
}

Acceptance Acceptance::of(std::uint64_t features) noexcept {
  const auto has = [features](std::uint64_t bit) { return (features & bit) != 0; };
  Acceptance a;
  a.checksum = has(feature::guest_csum);
  // All need GUEST_CSUM (§5.1.3.1); a front-end may hand over a set that breaks that rule.
  a.tso4 = a.checksum && has(feature::guest_tso4);
  a.tso6 = a.checksum && has(feature::guest_tso6);
  a.ecn = (a.tso4 || a.tso6) && has(feature::guest_ecn);
  a.uso4 = a.checksum && has(feature::guest_uso4);
  a.uso6 = a.checksum && has(feature::guest_uso6);
  return a;
}

bool Acceptance::takes_whole(const vswitch::Packet& packet) const noexcept {
  if (packet.offload.ecn && !ecn) return packet.offload.gso == Gso::none;
  switch (packet.offload.gso) {
    case Gso::none:
      return true;
    case Gso::tcp4:
      return tso4;
    case Gso::tcp6:
      return tso6;
    case Gso::udp_l4:
      if (uso4 == uso6) return uso4;
      return vswitch::parse_layers(packet).ipv6 ? uso6 : uso4;
  }
  return false;
}

virtio::wire::NetHeader describe_some(const Offload& offload, const Acceptance& acceptance,
                                      std::uint16_t buffers) noexcept {
  std::uint64_t flags = 0, gso_type = 0, hdr_len = 0, gso_size = 0, start = 0;
  std::uint32_t offset = 0;
  if (acceptance.checksum) {
    if (offload.checksum_needed) {
      flags = flag::needs_csum;
      start = offload.checksum_start;
      offset = offload.checksum_offset;
    } else if (offload.checksum_verified) {
      flags = flag::data_valid;
    }
    if (offload.gso != Gso::none) {
      gso_type = write_gso(offload.gso) | (offload.ecn ? gso::ecn : 0u);
      gso_size = offload.gso_size;
      hdr_len = offload.header_length;
    }
  }
  const base::le64 low{flags | gso_type << 8 | hdr_len << 16 | gso_size << 32 | start << 48};
  const base::le32 high{offset | std::uint32_t{buffers} << 16};
  return compose(low, high);
}

std::string offload_names(std::uint64_t features) {
  static constexpr std::pair<std::uint64_t, const char*> names[] = {
      {feature::csum, "csum"},
      {feature::guest_csum, "guest_csum"},
      {feature::host_tso4, "tso4"},
      {feature::host_tso6, "tso6"},
      {feature::host_ecn, "ecn"},
      {feature::host_uso, "uso"},
      {feature::guest_tso4, "guest_tso4"},
      {feature::guest_tso6, "guest_tso6"},
      {feature::guest_ecn, "guest_ecn"},
      {feature::guest_uso4, "guest_uso4"},
      {feature::guest_uso6, "guest_uso6"},
      {feature::mrg_rxbuf, "mrg_rxbuf"}};
  std::string text;
  for (const auto& [bit, name] : names) {
    if ((features & bit) == 0) continue;
    if (!text.empty()) text += ' ';
    text += name;
  }
  return text.empty() ? "none" : text;
}

}  // namespace millrace::net

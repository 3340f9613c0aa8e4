#include "net/rss_config.hpp"

#include <algorithm>
#include <bit>

#include "net/control_read.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {

namespace wire = virtio::wire;
namespace kind = vswitch::hash_kind;
namespace type = wire::net_hash_type;

// The switch knows no virtio, and its numbers are the same.
static_assert(kind::ipv4 == type::ipv4 && kind::tcp4 == type::tcpv4 && kind::udp4 == type::udpv4 &&
              kind::ipv6 == type::ipv6 && kind::tcp6 == type::tcpv6 && kind::udp6 == type::udpv6 &&
              kind::ipv6_ex == type::ip_ex && kind::tcp6_ex == type::tcp_ex &&
              kind::udp6_ex == type::udp_ex && kind::all == type::all);
static_assert(std::has_single_bit(rss_entries_max));
// A report is the number of its type's bit, counted from one.
static_assert(wire::net_hash_report::ipv4 == 1 && wire::net_hash_report::udpv6_ex == 9);

namespace {

// The length of the key, and the key. A short one goes on with zeros.
bool read_key(const virtio::Chain& chain, std::size_t offset, HashConfig& out) noexcept {
  std::uint8_t size = 0;
  if (!read_at(chain, offset, size) || size > rss_key_max) return false;
  if (size == 0 && out.types != 0) return false;
  out.key.fill(0);
  const auto bytes = std::as_writable_bytes(std::span{out.key}).first(size);
  return virtio::copy_from(chain.readable(), offset + sizeof size, bytes) == size;
}

}  // namespace

bool is_valid(const HashConfig& config) noexcept {
  return (config.types & ~hash_types_offered) == 0;
}

bool is_valid(const RssConfig& config, unsigned pairs) noexcept {
  const std::size_t entries = std::size_t{config.mask} + 1;
  if (!is_valid(config.hash) || entries > rss_entries_max || !std::has_single_bit(entries)) {
    return false;
  }
  if (config.transmit_pairs < 1 || config.transmit_pairs > pairs) return false;
  if (config.unclassified >= pairs) return false;
  const auto used = std::span{config.pairs}.first(entries);
  return std::ranges::all_of(used, [pairs](std::uint16_t pair) { return pair < pairs; });
}

bool read_hash(const virtio::Chain& chain, HashConfig& out) noexcept {
  base::le32 types{};
  std::size_t at = sizeof(wire::NetControl);
  if (!read_at(chain, at, types)) return false;
  out.types = types.host();
  return read_key(chain, at + wire::net_hash_key_length_at, out) && is_valid(out);
}

bool read_rss(const virtio::Chain& chain, unsigned pairs, RssConfig& out) noexcept {
  wire::NetRssHead head{};
  std::size_t at = sizeof(wire::NetControl);
  if (!read_at(chain, at, head)) return false;
  at += sizeof head;
  out.hash.types = head.hash_types.host();
  out.mask = head.indirection_table_mask.host();
  out.unclassified = head.unclassified_queue.host();
  if (out.mask >= rss_entries_max) return false;
  out.pairs.fill(0);
  for (std::size_t i = 0; i <= out.mask; ++i, at += sizeof(base::le16)) {
    base::le16 pair{};
    if (!read_at(chain, at, pair)) return false;
    out.pairs[i] = pair.host();
  }
  base::le16 transmit{};
  if (!read_at(chain, at, transmit)) return false;
  out.transmit_pairs = transmit.host();
  return read_key(chain, at + sizeof transmit, out.hash) && is_valid(out, pairs);
}

std::shared_ptr<const vswitch::PacketHash> make_hash(const HashConfig& config) {
  if (config.types == 0) return nullptr;
  return std::make_shared<const vswitch::PacketHash>(config.types, config.key);
}

std::shared_ptr<const vswitch::Steering> make_steering(const RssConfig& config) {
  auto steering = std::make_shared<vswitch::Steering>();
  steering->hash = std::make_shared<const vswitch::PacketHash>(config.hash.types, config.hash.key);
  steering->mask = config.mask;
  steering->unclassified = config.unclassified;
  steering->slots = config.pairs;
  return steering;
}

std::uint16_t report_of(std::uint32_t hash_kind) noexcept {
  return static_cast<std::uint16_t>(hash_kind == 0 ? 0 : std::countr_zero(hash_kind) + 1);
}

}  // namespace millrace::net

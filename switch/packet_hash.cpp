#include "switch/packet_hash.hpp"

#include <cstring>

#include "switch/header.hpp"

namespace millrace::vswitch {

namespace {

constexpr std::size_t ipv6_header = 40, ipv6_address = 16, tcp_header = 20, udp_header = 8;
constexpr std::uint8_t home_address_option = 0xc9, pad_option = 0, routing_to_home = 2;

// Where in the fetched header the fields of the hash lie.
struct Fields {
  bool ip = false, ipv6 = false, extended = false;
  std::uint8_t protocol = 0;  // TCP or UDP where `ports` is set
  std::size_t source = 0, destination = 0, ports = 0;
  std::size_t home_source = 0, home_destination = 0;  // as `source`, where no header says otherwise
};

// Takes the ports, if the transport header lies whole in the fetched bytes.
void find_ports(const Packet& packet, std::uint8_t protocol, std::size_t at, Fields& out) noexcept {
  const bool tcp = protocol == ip::tcp, udp = protocol == ip::udp;
  if (!tcp && !udp) return;
  if (at + (tcp ? tcp_header : udp_header) > packet.header_size) return;
  out.protocol = protocol;
  out.ports = at;
}

void find_ipv4(const Packet& packet, std::size_t at, Fields& out) noexcept {
  if (at + 20 > packet.header_size || load8(packet, at) >> 4 != 4) return;
  const std::size_t size = (load8(packet, at) & 0xfu) * 4u;
  if (size < 20) return;
  out.ip = true;
  out.source = at + 12, out.destination = at + 16;
  const bool fragment = (load16(packet, at + 6) & 0x3fff) != 0;
  if (!fragment) find_ports(packet, load8(packet, at + 9), at + size, out);
}

// A destination options header of `size` bytes, all of them fetched.
void find_home_address(const Packet& packet, std::size_t at, std::size_t size,
                       Fields& out) noexcept {
  const std::size_t end = at + size;
  for (at += 2; at < end;) {
    const std::uint8_t option = load8(packet, at);
    if (option == pad_option) {
      ++at;
      continue;
    }
    if (at + 2 > end) return;
    const std::size_t length = load8(packet, at + 1);
    if (at + 2 + length > end) return;
    if (option == home_address_option && length == ipv6_address) out.home_source = at + 2;
    at += 2 + length;
  }
}

// Follows the extension headers (RFC 8200 §4) as far as they were fetched; each is at least 8
// bytes, so their number is bounded.
void find_ipv6(const Packet& packet, std::size_t at, Fields& out) noexcept {
  if (at + ipv6_header > packet.header_size || load8(packet, at) >> 4 != 6) return;
  out.ip = out.ipv6 = true;
  out.source = out.home_source = at + 8;
  out.destination = out.home_destination = at + 24;
  std::uint8_t next = load8(packet, at + 6);
  at += ipv6_header;
  for (;;) {
    const bool options = next == ip::destination_options, routing = next == ip::routing;
    const bool authentication = next == ip::authentication;
    if (next == ip::fragment) out.extended = true;
    if (!options && !routing && !authentication && next != ip::hop_by_hop) break;
    out.extended = true;
    if (at + 8 > packet.header_size) return;
    const std::size_t units = load8(packet, at + 1);
    const std::size_t size = authentication ? (units + 2) * 4 : (units + 1) * 8;
    if (at + size > packet.header_size) return;
    if (options) find_home_address(packet, at, size, out);
    if (routing && size == 24 && load8(packet, at + 2) == routing_to_home) {
      out.home_destination = at + 8;
    }
    next = load8(packet, at);
    at += size;
  }
  find_ports(packet, next, at, out);
}

Fields find(const Packet& packet) noexcept {
  Fields out;
  std::size_t at = ethernet::header_size;
  if (packet.header_size < at) return out;
  auto type = load16(packet, at - 2);
  for (unsigned tags = 0; tags < 2 && ethernet::is_tag(type); ++tags) {
    if (at + ethernet::tag_size > packet.header_size) return out;
    at += ethernet::tag_size;
    type = load16(packet, at - 2);
  }
  if (type == ethernet::ipv4) find_ipv4(packet, at, out);
  if (type == ethernet::ipv6) find_ipv6(packet, at, out);
  return out;
}

// The first kind of these that is wanted; `l4` and `ip` are of the packet's IP version.
std::uint32_t pick(const Fields& fields, std::uint32_t wanted, std::uint32_t tcp, std::uint32_t udp,
                   std::uint32_t bare) noexcept {
  if (fields.protocol == ip::tcp && (wanted & tcp) != 0) return tcp;
  if (fields.protocol == ip::udp && (wanted & udp) != 0) return udp;
  return wanted & bare;
}

std::uint32_t kind_of(const Fields& fields, std::uint32_t wanted) noexcept {
  using namespace hash_kind;
  if (!fields.ip) return 0;
  if (!fields.ipv6) return pick(fields, wanted, tcp4, udp4, ipv4);
  const std::uint32_t extended =
      fields.extended ? pick(fields, wanted, tcp6_ex, udp6_ex, ipv6_ex) : 0;
  return extended != 0 ? extended : pick(fields, wanted, tcp6, udp6, ipv6);
}

}  // namespace

PacketHash::Result PacketHash::of(const Packet& packet) const noexcept {
  using namespace hash_kind;
  const Fields fields = find(packet);
  const std::uint32_t kind = kind_of(fields, kinds_);
  if (kind == 0) return {};
  const bool home = (kind & (ipv6_ex | tcp6_ex | udp6_ex)) != 0;
  const bool ports = (kind & (ipv4 | ipv6 | ipv6_ex)) == 0;
  const std::size_t size = fields.ipv6 ? ipv6_address : 4;
  std::array<std::byte, Toeplitz::input_max> input;
  std::size_t filled = 0;
  const auto take = [&](std::size_t at, std::size_t bytes) {
    std::memcpy(input.data() + filled, packet.header.data() + at, bytes);
    filled += bytes;
  };
  take(home ? fields.home_source : fields.source, size);
  take(home ? fields.home_destination : fields.destination, size);
  if (ports) take(fields.ports, 4);
  return {hash_({input.data(), filled}), kind};
}

}  // namespace millrace::vswitch

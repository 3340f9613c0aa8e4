#include "switch/gro.hpp"

#include <algorithm>
#include <cstring>

#include "base/check.hpp"
#include "switch/header.hpp"

namespace millrace::vswitch {

namespace {

constexpr std::uint8_t flag_psh = 0x08, flag_ack = 0x10;
constexpr std::uint32_t ip_length_max = 65'535;

std::uint32_t sequence_of(const Packet& packet, const Layers& layers) noexcept {
  const std::size_t at = std::size_t{layers.l2} + layers.l3 + 4;
  return std::uint32_t{load16(packet, at)} << 16 | load16(packet, at + 2);
}

std::uint8_t flags_of(const Packet& packet, const Layers& layers) noexcept {
  return load8(packet, std::size_t{layers.l2} + layers.l3 + 13);
}

std::uint32_t headers_of(const Layers& layers) noexcept {
  return std::uint32_t{layers.l2} + layers.l3 + layers.l4;
}

// Its payload bytes where it may be joined with others, else 0: data and an acknowledgement in a
// frame without options of IP, whose lengths are those of the frame and whose checksums are right.
std::uint32_t payload_of(const Packet& packet, const Layers& layers) noexcept {
  const auto headers = headers_of(layers);
  if (layers.protocol != ip::tcp || !packet.offload.checksum_verified || packet.length <= headers) {
    return 0;
  }
  if ((flags_of(packet, layers) & ~flag_psh) != flag_ack) return 0;
  const std::size_t l3 = layers.l2;
  const std::uint32_t total = packet.length - layers.l2;
  if (layers.ipv6) {
    if (layers.l3 != 40 || load16(packet, l3 + 4) != total - 40) return 0;
  } else {
    if (layers.l3 != 20 || load16(packet, l3 + 2) != total) return 0;
    if (checksum_fold(checksum_add({packet.header.data() + l3, 20}, 0)) != 0) return 0;
  }
  return packet.length - headers;
}

bool same(const Packet& one, const Packet& other, std::size_t begin, std::size_t end) noexcept {
  return std::memcmp(one.header.data() + begin, other.header.data() + begin, end - begin) == 0;
}

// A tag that the device took off is as one in the header.
bool same_tag(const Packet& one, const Packet& other) noexcept {
  return one.tag_apart == other.tag_apart &&
         (!one.tag_apart || (one.vlan == other.vlan && one.priority == other.priority));
}

// All that may not differ between frames that are joined, but for the flow's own numbers.
bool same_headers(const Packet& one, const Packet& other, const Layers& layers) noexcept {
  const std::size_t l3 = layers.l2, l4 = l3 + layers.l3;
  const bool network = layers.ipv6
                           ? same(one, other, l3, l3 + 4) && same(one, other, l3 + 6, l4)
                           : same(one, other, l3, l3 + 2) && same(one, other, l3 + 6, l3 + 10) &&
                                 same(one, other, l3 + 12, l4);
  return network && same_tag(one, other) && same(one, other, 0, l3) &&
         same(one, other, l4, l4 + 4) &&  // ports
         same(one, other, l4 + 8, l4 + 13) && same(one, other, l4 + 14, l4 + 16) &&
         same(one, other, l4 + 18, l4 + layers.l4);
}

// What a packet has, and not the room that it has for more.
void move(const Packet& from, Packet& to) noexcept {
  copy_all_but_views(from, to);
  to.tag_apart = from.tag_apart;
  to.completion = from.completion;
  to.token = from.token;
  to.view_count = from.view_count;
  std::copy_n(from.views.begin(), from.view_count, to.views.begin());
}

}  // namespace

std::size_t Gro::join(std::span<Packet> packets, std::span<const Place> places) noexcept {
  CHECK(packets.size() == places.size() && packets.size() <= burst_max);
  std::array<bool, burst_max> joined{};
  flows_ = {};
  next_ = 0;
  for (std::size_t i = 0; i < packets.size(); ++i) look_at(packets[i], places[i], joined[i]);
  for (Flow& flow : flows_) finish(flow);
  std::size_t left = 0;
  for (std::size_t i = 0; i < packets.size(); ++i) {
    if (joined[i]) continue;
    if (left != i) move(packets[i], packets[left]);
    ++left;
  }
  return left;
}

void Gro::look_at(Packet& packet, Place place, bool& joined) noexcept {
  const Layers layers = parse_layers(packet);
  if (!layers.valid) {  // a fragment may be anybody's
    for (Flow& flow : flows_) flow.open = false;
    return;
  }
  const std::uint32_t payload = place != nullptr ? payload_of(packet, layers) : 0;
  for (Flow& flow : flows_) {
    if (!flow.open || !same_flow(flow, packet, layers)) continue;
    if (payload != 0 && follows(flow, packet, payload)) {
      append(flow, packet, place, payload);
      joined = true;
      return;
    }
    flow.open = false;
  }
  if (payload != 0) begin(packet, layers, payload);
}

// Addresses and ports. Who is in other VLANs too is another one; it only ends what it could join.
bool Gro::same_flow(const Flow& flow, const Packet& packet, const Layers& layers) noexcept {
  const Layers& its = flow.layers;
  if (layers.l2 != its.l2 || layers.ipv6 != its.ipv6 || layers.protocol != its.protocol) {
    return false;
  }
  const std::size_t at = layers.l2 + (layers.ipv6 ? 8u : 12u);
  const std::size_t ports = std::size_t{layers.l2} + layers.l3;
  return layers.l3 == its.l3 && same(*flow.whole, packet, at, at + (layers.ipv6 ? 32 : 8)) &&
         same(*flow.whole, packet, ports, ports + 4);
}

bool Gro::follows(const Flow& flow, const Packet& packet, std::uint32_t payload) noexcept {
  const Packet& whole = *flow.whole;
  const Layers& layers = flow.layers;
  const std::size_t l4 = std::size_t{layers.l2} + layers.l3;
  if (load8(whole, l4 + 12) != load8(packet, l4 + 12)) return false;  // the header's length
  return same_headers(whole, packet, layers) && sequence_of(packet, layers) == flow.sequence &&
         (layers.ipv6 || load16(packet, layers.l2 + 4u) == flow.id) && payload <= flow.size &&
         whole.view_count < Packet::views_max &&
         whole.length - layers.l2 + payload <= ip_length_max;
}

void Gro::append(Flow& flow, const Packet& packet, Place place, std::uint32_t payload) noexcept {
  Packet& whole = *flow.whole;
  const auto headers = headers_of(flow.layers);
  whole.views[whole.view_count++] = {place + headers, payload};
  whole.length += payload;
  const std::size_t flags = std::size_t{flow.layers.l2} + flow.layers.l3 + 13;
  const bool push = (flags_of(packet, flow.layers) & flag_psh) != 0;
  if (push) whole.header[flags] |= std::byte{flag_psh};
  flow.sequence += payload;
  ++flow.id;
  ++flow.frames;
  flow.open = !push && payload == flow.size;
}

void Gro::begin(Packet& packet, const Layers& layers, std::uint32_t payload) noexcept {
  Flow& flow = flows_[next_];
  next_ = (next_ + 1) % flows_.size();
  finish(flow);
  flow = {.whole = &packet,
          .layers = layers,
          .sequence = sequence_of(packet, layers) + payload,
          .size = payload,
          .frames = 1,
          .id = static_cast<std::uint16_t>(load16(packet, layers.l2 + 4u) + 1),
          .open = (flags_of(packet, layers) & flag_psh) == 0};
}

// The lengths of the whole, and the request that a guest would have made for it.
void Gro::finish(Flow& flow) noexcept {
  if (flow.whole == nullptr || flow.frames < 2) return;
  Packet& whole = *flow.whole;
  const Layers& layers = flow.layers;
  const std::size_t l3 = layers.l2, l4 = l3 + layers.l3;
  const auto l4_length = static_cast<std::uint32_t>(whole.length - l4);
  if (layers.ipv6) {
    store16(whole, l3 + 4, l4_length);
  } else {
    store16(whole, l3 + 2, layers.l3 + l4_length);
    store16(whole, l3 + 10, 0);
    store16(whole, l3 + 10, checksum_fold(checksum_add({whole.header.data() + l3, layers.l3}, 0)));
  }
  store16(whole, l4 + 16, pseudo_header_sum(whole, layers, l4_length));
  whole.offload = {.checksum_needed = true,
                   .gso = layers.ipv6 ? Gso::tcp6 : Gso::tcp4,
                   .checksum_start = static_cast<std::uint16_t>(l4),
                   .checksum_offset = 16,
                   .gso_size = static_cast<std::uint16_t>(flow.size),
                   .header_length = static_cast<std::uint16_t>(headers_of(layers))};
  flow.frames = 0;
}

}  // namespace millrace::vswitch

#include "net/rarp.hpp"

#include <algorithm>

namespace millrace::net {

namespace {

constexpr std::size_t frame_size = 60;  // the shortest frame on a wire, without FCS

// Writes bytes one after the other.
class Pen {
 public:
  explicit Pen(std::byte* at) : at_{at} {}
  void word(std::uint16_t value) {
    *at_++ = static_cast<std::byte>(value >> 8);
    *at_++ = static_cast<std::byte>(value & 0xff);
  }
  void bytes(std::span<const std::uint8_t> from) {
    for (const std::uint8_t b : from) *at_++ = static_cast<std::byte>(b);
  }
  void fill(std::size_t count, std::uint8_t value) {
    at_ = std::fill_n(at_, count, static_cast<std::byte>(value));
  }

 private:
  std::byte* at_;
};

}  // namespace

void make_rarp(std::span<const std::uint8_t, 6> mac, std::uint16_t vlan, vswitch::PortId source,
               vswitch::Packet& packet) noexcept {
  static_assert(frame_size + 4 <= vswitch::Packet::header_max);
  const std::size_t length = frame_size + (vlan != 0 ? 4 : 0);
  packet.header.fill(std::byte{0});
  Pen pen{packet.header.data()};
  pen.fill(6, 0xff);
  pen.bytes(mac);
  if (vlan != 0) pen.word(0x8100), pen.word(vlan);
  pen.word(0x8035);                                              // RARP
  pen.word(1), pen.word(0x0800), pen.word(0x0604), pen.word(3);  // Ethernet, IPv4, sizes, request
  pen.bytes(mac), pen.fill(4, 0);                                // sender
  pen.bytes(mac), pen.fill(4, 0);                                // target
  packet.header_size = static_cast<std::uint16_t>(length);
  packet.length = static_cast<std::uint32_t>(length);
  packet.view_count = 0;
  packet.offload = {};
  packet.source = source;
  packet.vlan = 0;
  packet.priority = 0;
  packet.flow_hash = 0;
  packet.completion = nullptr;
  packet.token = 0;
}

}  // namespace millrace::net

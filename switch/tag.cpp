#include "switch/tag.hpp"

#include <algorithm>
#include <cstring>

namespace millrace::vswitch {

namespace {

constexpr std::size_t tag_at = ethernet::addresses_size, tag_size = ethernet::tag_size;

// Moves the offsets of an offload request by `distance` bytes.
void shift_offload(Offload& offload, int distance) noexcept {
  if (!offload.checksum_needed) return;
  offload.checksum_start = static_cast<std::uint16_t>(offload.checksum_start + distance);
  if (offload.header_length != 0) {
    offload.header_length = static_cast<std::uint16_t>(offload.header_length + distance);
  }
}

}  // namespace

void strip_tag(Packet& packet) noexcept {
  std::byte* header = packet.header.data();
  std::memmove(header + tag_at, header + tag_at + tag_size, packet.header_size - tag_at - tag_size);
  packet.header_size = static_cast<std::uint16_t>(packet.header_size - tag_size);
  packet.length -= static_cast<std::uint32_t>(tag_size);
  shift_offload(packet.offload, -static_cast<int>(tag_size));
}

bool insert_tag(Packet& packet, Spill& spill) noexcept {
  std::byte* header = packet.header.data();
  const std::size_t size = packet.header_size;
  const std::size_t kept = std::min(size, Packet::header_max - tag_size);
  if (kept < size) {
    if (packet.view_count == Packet::views_max) return false;
    std::memcpy(spill.data(), header + kept, size - kept);
    std::memmove(&packet.views[1], &packet.views[0], packet.view_count * sizeof(View));
    packet.views[0] = {spill.data(), static_cast<std::uint32_t>(size - kept)};
    ++packet.view_count;
  }
  std::memmove(header + tag_at + tag_size, header + tag_at, kept - tag_at);
  packet.header_size = static_cast<std::uint16_t>(kept + tag_size);
  packet.length += static_cast<std::uint32_t>(tag_size);
  store16(packet, tag_at, ethernet::customer_tag);
  store16(packet, tag_at + 2, std::uint32_t{packet.priority} << 12 | packet.vlan);
  shift_offload(packet.offload, static_cast<int>(tag_size));
  return true;
}

}  // namespace millrace::vswitch

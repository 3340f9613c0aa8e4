#include "net/rx_filter.hpp"

#include <algorithm>
#include <cstring>

#include "virtio/wire/net.hpp"

namespace millrace::net {

namespace {

constexpr RxFilter::Mac broadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
constexpr std::size_t type_at = 12, tag_at = 14, tag_end = 16;

bool lists(const RxFilter::Addresses& addresses, const RxFilter::Mac& mac) noexcept {
  if (addresses.count > RxFilter::addresses_max) return true;
  const auto known = std::span{addresses.macs}.first(addresses.count);
  return std::ranges::find(known, mac) != known.end();
}

}  // namespace

bool RxFilter::set_mode(std::uint8_t command, bool on) noexcept {
  namespace rx = virtio::wire::net_rx_command;
  switch (command) {
    case rx::promisc:
      promiscuous_ = on;
      return true;
    case rx::allmulti:
      all_multicast_ = on;
      return true;
    case rx::alluni:
      all_unicast_ = on;
      return true;
    case rx::nomulti:
      no_multicast_ = on;
      return true;
    case rx::nouni:
      no_unicast_ = on;
      return true;
    case rx::nobcast:
      no_broadcast_ = on;
      return true;
    default:
      return false;
  }
}

void RxFilter::set_addresses(const Addresses& stations, const Addresses& groups) noexcept {
  stations_ = stations;
  groups_ = groups;
}

bool RxFilter::set_vlan(std::uint16_t vlan, bool wanted) noexcept {
  if (vlan >= vlans) return false;
  wanted_vlans_[vlan] = wanted;
  return true;
}

bool RxFilter::takes_vlan(std::span<const std::byte> header) const noexcept {
  const bool tagged = header.size() >= tag_end && header[type_at] == std::byte{0x81} &&
                      header[type_at + 1] == std::byte{0x00};
  if (!tagged) return true;
  const auto high = std::to_integer<unsigned>(header[tag_at]),
             low = std::to_integer<unsigned>(header[tag_at + 1]);
  return wanted_vlans_[(high << 8 | low) % vlans];
}

bool RxFilter::takes(const vswitch::Packet& packet) const noexcept {
  if (promiscuous_) return true;
  const auto header = packet.headers();
  Mac to{};
  if (header.size() < to.size()) return true;
  if (by_vlan_ && !takes_vlan(header)) return false;
  std::memcpy(to.data(), header.data(), to.size());
  if (to == broadcast) return !no_broadcast_;
  if ((to[0] & 1) != 0) return !no_multicast_ && (all_multicast_ || lists(groups_, to));
  return !no_unicast_ && (all_unicast_ || !own_ || *own_ == to || lists(stations_, to));
}

}  // namespace millrace::net

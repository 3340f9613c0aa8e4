#include "net/rx_filter.hpp"

#include <algorithm>
#include <cstring>

namespace millrace::net {

namespace rx = virtio::wire::net_rx_command;

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
  if (command >= modes_.size()) return false;
  modes_[command] = on;
  return true;
}

void RxFilter::take_all_addresses() noexcept {
  modes_[rx::promisc] = false;
  modes_[rx::alluni] = modes_[rx::allmulti] = true;
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

RxFilter::Contents RxFilter::contents() const noexcept {
  Contents out{static_cast<std::uint8_t>(modes_.to_ulong()), {}, stations_, groups_, {}};
  for (std::size_t i = 0; i < vlans; ++i) {
    if (wanted_vlans_[i]) out.wanted_vlans[i / 8] |= static_cast<std::uint8_t>(1u << i % 8);
  }
  return out;
}

void RxFilter::restore(const Contents& contents) noexcept {
  modes_ = contents.modes;
  stations_ = contents.stations;
  groups_ = contents.groups;
  for (std::size_t i = 0; i < vlans; ++i) {
    wanted_vlans_[i] = (contents.wanted_vlans[i / 8] >> i % 8 & 1) != 0;
  }
}

bool RxFilter::takes(const vswitch::Packet& packet) const noexcept {
  if (modes_[rx::promisc]) return true;
  const auto header = packet.headers();
  Mac to{};
  if (header.size() < to.size()) return true;
  if (by_vlan_ && !takes_vlan(header)) return false;
  std::memcpy(to.data(), header.data(), to.size());
  if (to == broadcast) return !modes_[rx::nobcast];
  if ((to[0] & 1) != 0) {
    return !modes_[rx::nomulti] && (modes_[rx::allmulti] || lists(groups_, to));
  }
  return !modes_[rx::nouni] && (modes_[rx::alluni] || !own_ || *own_ == to || lists(stations_, to));
}

}  // namespace millrace::net

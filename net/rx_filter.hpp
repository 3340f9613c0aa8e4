// RxFilter: which frames a driver wants, as it said over the control queue (virtio 1.2 §5.1.6.5.1
// modes, §5.1.6.5.2 addresses, §5.1.6.5.3 VLANs). A device begins with all of them.
//
// It only ever spares the driver frames: whoever must not see a frame is kept from it by the
// switch. Thread: one writes, or it is not written any more.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <span>

#include "switch/packet.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::net {

class RxFilter {
 public:
  using Mac = std::array<std::uint8_t, 6>;
  // Addresses of a kind (one station's, groups'). A driver with more gets all frames of that kind.
  static constexpr std::size_t addresses_max = 64;
  static constexpr std::uint16_t vlans = 4096;

  struct Addresses {
    std::array<Mac, addresses_max> macs{};
    std::uint32_t count = 0;  // more than addresses_max: they are not kept
  };

  // `own`: the port's address, where it is known; else every single station's is taken.
  void set_own(std::optional<Mac> own) noexcept { own_ = own; }
  // A command of class RX (promisc..nobcast). False: there is no such mode.
  [[nodiscard]] bool set_mode(std::uint8_t command, bool on) noexcept;
  void set_addresses(const Addresses& stations, const Addresses& groups) noexcept;
  // The driver says nothing of addresses (no CTRL_RX): VLANs alone decide.
  void take_all_addresses() noexcept;
  // From then on tagged frames are taken by their VLAN only, unless the driver is promiscuous.
  void filter_vlans() noexcept { by_vlan_ = true; }
  // False: no VLAN has that number.
  [[nodiscard]] bool set_vlan(std::uint16_t vlan, bool wanted) noexcept;

  // What a driver said, to be kept for it. Whatever the contents are, the filter can work with
  // them.
  struct Contents {
    std::uint8_t modes;  // by command
    std::uint8_t padding[3];
    Addresses stations, groups;
    std::array<std::uint8_t, vlans / 8> wanted_vlans;
  };
  [[nodiscard]] Contents contents() const noexcept;
  void restore(const Contents& contents) noexcept;

  [[nodiscard]] bool takes(const vswitch::Packet& packet) const noexcept;

 private:
  [[nodiscard]] bool takes_vlan(std::span<const std::byte> header) const noexcept;

  // By command; a device begins promiscuous.
  std::bitset<virtio::wire::net_rx_command::nobcast + 1> modes_{
      1u << virtio::wire::net_rx_command::promisc};
  bool by_vlan_ = false;
  std::optional<Mac> own_;
  Addresses stations_, groups_;
  std::bitset<vlans> wanted_vlans_;
};

}  // namespace millrace::net

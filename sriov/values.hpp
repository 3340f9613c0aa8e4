// The settings of a virtual function that its physical function's driver keeps: what rtnetlink
// calls IFLA_VF_INFO (<linux/if_link.h>).
// Thread: any; plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/mac.hpp"

namespace millrace::sriov {

using base::Mac;

// The tag that the NIC puts on all that the function sends and takes off what it gets. 0: none.
struct Vlan {
  std::uint16_t id = 0;
  std::uint8_t qos = 0;      // 0 to 7
  bool service_tag = false;  // 802.1ad instead of 802.1Q
  bool operator==(const Vlan&) const = default;
};
// What the function may send, in Mbit/s. 0: no bound.
struct Rate {
  std::uint32_t min = 0, max = 0;
  bool operator==(const Rate&) const = default;
};
// Frames from other addresses than the function's own are dropped.
struct SpoofCheck {
  bool on = false;
  bool operator==(const SpoofCheck&) const = default;
};
// The function may ask for what touches others: promiscuous reception, another address.
struct Trust {
  bool on = false;
  bool operator==(const Trust&) const = default;
};
// What the function is told of the link. The numbers are IFLA_VF_LINK_STATE_*.
enum class LinkState : std::uint32_t { automatic = 0, on = 1, off = 2 };

// In the order in which settings are made: the tag decides which filter the address lands in, and
// trust may be needed by what a driver does with the rest.
using Setting = std::variant<Vlan, Mac, Rate, SpoofCheck, Trust, LinkState>;

// A function's settings. Absent: nothing is wished, or the driver does not tell.
struct VfValues {
  std::optional<Mac> mac{};
  std::optional<Vlan> vlan{};
  std::optional<Rate> rate{};
  std::optional<SpoofCheck> spoof_check{};
  std::optional<Trust> trust{};
  std::optional<LinkState> link{};

  bool operator==(const VfValues&) const = default;
  // Those that are there, in the order of Setting.
  [[nodiscard]] std::vector<Setting> list() const;
  // The setting of the same kind as `like`.
  [[nodiscard]] std::optional<Setting> same_kind(const Setting& like) const;
  void set(const Setting& setting);
};

// "MAC 52:54:00:00:00:01", "VLAN 10 (QoS 3)", "trust on": for a line.
[[nodiscard]] std::string format(const Setting& setting);

}  // namespace millrace::sriov

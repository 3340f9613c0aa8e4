// Which uplinks carry frames: all that have a device, but of an uplink and its standby one at a
// time, or the network behind them would be a loop. As active-backup of bonding does: the first
// while its link is up, else the standby. A bond's members do as long as it has its own device,
// whatever their links: which of them is used is the bond's. Pure.
#pragma once

#include <chrono>
#include <set>
#include <span>
#include <string>

namespace millrace::daemon {

struct UplinkView {
  std::string name, standby;  // standby: empty, or the name of another, which may not be there
  std::string bond;           // empty, or the name of the one that it is a member of
  bool usable = false;        // it has a device that works
  bool up = false;            // and that has a link
  bool calm = false;          // for a while by now
  bool carries = false;       // frames, as of now
};

// The names of those that shall carry. While neither of two has a link, the one that does stays.
[[nodiscard]] std::set<std::string> choose_uplinks(std::span<const UplinkView> uplinks);

// Whether what follows the uplink `name` has a link: the uplink's, or its standby's.
[[nodiscard]] bool leads_out(std::span<const UplinkView> uplinks, const std::string& name);

// How long to wait before try number `tries` (from 0) to get a device back: twice as long each
// time.
[[nodiscard]] std::chrono::milliseconds pause_before(unsigned tries,
                                                     std::chrono::milliseconds first,
                                                     std::chrono::milliseconds most);

}  // namespace millrace::daemon

// UplinkUnit: one uplink of the running daemon: its configuration, its port of the switch, and how
// its device is. Thread: control.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/event_loop.hpp"
#include "base/side_thread.hpp"
#include "daemon/config.hpp"
#include "daemon/eal_domain.hpp"
#include "daemon/stall_watch.hpp"
#include "daemon/wire_memory.hpp"
#include "sriov/vf_pool.hpp"
#include "switch/ethdev_port.hpp"
#include "vfio/error_watch.hpp"

namespace millrace::daemon {

enum class UnitState { starting, running, stopping };

// How an uplink's device is, as its keeper knows it.
struct UplinkCare {
  using Clock = std::chrono::steady_clock;

  base::EventLoop::Watch departure, errors;
  std::optional<vfio::ErrorWatch> error_watch;
  // Asks its device for its link, which may take long; while a question is out, the device stays.
  std::unique_ptr<base::SideThread> asker;
  vswitch::LinkState link;
  Clock::time_point link_since{};   // when it last came or went
  Clock::time_point opened_at{};    // its device
  Clock::time_point try_at{};       // not before
  bool flapped = false;             // its device was without the link that it had
  bool lost = false;                // its device is given up, and to be had again
  bool closing = false;             // its device is being closed, which may take minutes
  bool failed = false;              // and is not tried any more
  bool host_has_it = false;         // the host took it: it comes when the host gives it back
  bool unannounced = false;         // it carries, and the network behind it was not told yet
  unsigned tries = 0;               // since it was last calm
  std::uint64_t losses = 0;         // of a device, since it was added
  std::string problem;              // why it has none; empty: it has one
  std::function<void()> on_closed;  // not empty: it is to be closed

  [[nodiscard]] bool asked() const { return asker != nullptr && asker->pending() != 0; }
};

struct UplinkUnit {
  UplinkEntry config;          // `device` is the function that it has, or had last
  UplinkUnit* bond = nullptr;  // that it is a member of
  UnitState state = UnitState::starting;
  // What it has for the device that it has now outlives that, which `uplink` has open.
  std::optional<sriov::VfLease> lease;
  // With zero copy; null: without, or it has no device.
  std::unique_ptr<EalDomain> domain;
  std::unique_ptr<WireMemory> memory;
  StallWatch stalls;
  std::unique_ptr<vswitch::Uplink> uplink;
  UplinkCare care;
};

}  // namespace millrace::daemon

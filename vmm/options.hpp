// The command line of millrace-vmm.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "vmm/boot.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

// Exit statuses. The guest's own end first.
inline constexpr int exit_power_off = 0, exit_failed = 1, exit_usage = 2, exit_reset = 3,
                     exit_panicked = 4;

// "--net socket=PATH[,mac=..][,queues=N][,queue-size=N][,wait=no]", --disk without a mac, and the
// others without mac and queues.
struct DeviceOption {
  enum class Kind { net, disk, rng, virtio_console, balloon };
  Kind kind = Kind::net;
  std::string socket;
  std::string mac;      // empty: the back-end's
  unsigned queues = 0;  // 0: as many as the back-end has
  unsigned queue_size = 256;
  bool wait = true;  // for a back-end that is not there yet
};

struct Options {
  BootConfig boot;
  RamConfig ram;
  unsigned cpus = 1;
  std::vector<std::string> consoles;  // one a serial port
  std::vector<DeviceOption> devices;  // in the order of the command line, slot 1 upwards
  bool restart = false;               // a guest's reset starts it again; else it ends the process
  std::string log_level = "info";
};

// Prints what is wrong, or help, and answers none; `status` is then the exit status.
std::optional<Options> parse_options(int argc, const char* const* argv, int& status);

[[nodiscard]] base::Result<DeviceOption> parse_device(DeviceOption::Kind kind,
                                                      const std::string& text);

}  // namespace millrace::vmm

// The command line of millrace-vmm.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "vmm/boot.hpp"
#include "vmm/cpu_model.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

// Exit statuses. The guest's own end first.
inline constexpr int exit_power_off = 0, exit_failed = 1, exit_usage = 2, exit_reset = 3,
                     exit_panicked = 4;

// "--net socket=PATH[,id=NAME][,mac=..][,queues=N][,queue-size=N][,wait=no][,removable=yes]",
// --disk without a mac, and the others without mac and queues; --virtio-mem with size=SIZE;
// "--vfio ADDRESS[,id=NAME]".
struct DeviceOption {
  enum class Kind { net, disk, rng, virtio_console, balloon, virtio_mem, vfio };
  Kind kind = Kind::net;
  std::string id;  // left out on the command line: net0, net1, disk0...
  std::string socket;
  std::string address{};  // vfio: the host's function, 0000:01:10.0; it has no socket
  std::string mac;        // empty: the back-end's
  unsigned queues = 0;    // 0: as many as the back-end has
  unsigned queue_size = 256;
  std::uint64_t size = 0;  // virtio-mem: the most that the guest can have of it, in bytes
  unsigned memory = 0;     // virtio-mem: its place in Options::ram.managed
  bool wait = true;        // for a back-end that is not there yet
  bool removable = false;  // can be unplugged, though there from the start
  bool confined = false;   // the sandbox is on; set by the program
};

struct Options {
  BootConfig boot;
  RamConfig ram;
  unsigned cpus = 1, cpus_most = 1;     // at the start; with those that may be added
  const CpuModel* cpu_model = nullptr;  // nullptr: the host's
  std::vector<std::string> consoles;    // one a serial port
  std::vector<DeviceOption> devices;    // in the order of the command line, ids unique
  unsigned hotplug_slots = 8;           // for devices that come later
  std::vector<std::string> functions;   // addresses on the host: those of devices, and allowed ones
  bool restart = false;                 // a guest's reset starts it again; else it ends the process
  bool sandbox = true;
  std::string log_level = "info";

  // PCI root ports for all devices, those that come later included.
  [[nodiscard]] unsigned pci_ports() const;
  std::string name;           // of the guest, for people
  std::string control;        // path of the control socket; empty: none
  std::string dump_on_panic;  // a file's path; empty: none
};

// Prints what is wrong, or help, and answers none; `status` is then the exit status.
std::optional<Options> parse_options(int argc, const char* const* argv, int& status);

// "net", "disk", "rng"...: its option without the dashes.
[[nodiscard]] std::string name_of(DeviceOption::Kind kind);
[[nodiscard]] std::optional<DeviceOption::Kind> device_kind(std::string_view name);
// Options of that kind with its defaults.
[[nodiscard]] DeviceOption device_of(DeviceOption::Kind kind);

// Letters, digits, - _ and ., at most 64 of them.
[[nodiscard]] bool is_device_id(std::string_view id);

[[nodiscard]] base::Result<DeviceOption> parse_device(DeviceOption::Kind kind,
                                                      const std::string& text);

}  // namespace millrace::vmm

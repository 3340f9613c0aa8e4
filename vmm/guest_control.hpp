// GuestControl: what a control socket can ask of a guest and its machine. Program is the real one.
//
// Thread: the loop's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/options.hpp"

namespace millrace::vmm {

struct GuestStatus {
  bool running = false;
  std::string status;  // QMP's RunState: running, paused, save-vm, guest-panicked
  std::string why;     // of not running, for a person
};

struct DeviceStatus {
  std::string id;
  DeviceOption::Kind kind = DeviceOption::Kind::net;
  std::string socket;
  bool connected = false;  // a back-end serves it now
  unsigned queues = 0;     // that the guest sees
};

struct DumpProgress {
  std::string status = "none";             // QMP's DumpStatus: none, active, completed, failed
  std::uint64_t completed = 0, total = 0;  // bytes of the guest's memory
  std::string error;                       // of failed
};
// Called on the loop's thread once a dump is over.
using DumpDone = std::function<void(const DumpProgress&)>;
// Called on the loop's thread once a device is there, or why it is not.
using AddDone = std::function<void(const base::Result<void>&)>;

class GuestControl {
 public:
  virtual ~GuestControl() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual GuestStatus status() const = 0;
  // The host's number of the thread of each vCPU.
  [[nodiscard]] virtual std::vector<int> vcpu_threads() const = 0;
  [[nodiscard]] virtual std::vector<DeviceStatus> devices() const = 0;
  [[nodiscard]] virtual DumpProgress dump_progress() const = 0;

  // The vCPUs stand still, or go on. Asking twice is asking once.
  virtual void pause() = 0;
  virtual void resume() = 0;
  virtual void press_power_button() = 0;
  // Both let the caller's answer leave first.
  virtual void reset() = 0;
  virtual void quit() = 0;

  // The guest notices by itself. Calls `done` at once or within seconds, and others are served
  // meanwhile. Fails in one line: the id is taken, no room, nobody serves the socket or answers on
  // it, an offer that cannot be used.
  virtual void add_device(const DeviceOption& device, AddDone done) = 0;
  // Asks the guest to let go; an event tells when it has. Fails in one line.
  virtual base::Result<void> remove_device(const std::string& id) = 0;
  // Both while the guest runs; it is told, and keeps them when it starts again. Fail in one line
  // where it was started with no room for them.
  virtual base::Result<void> add_cpus(unsigned count) = 0;
  virtual base::Result<void> add_memory(std::uint64_t bytes) = 0;
  // Writes the guest's memory and registers to `file`, with the vCPUs standing still meanwhile.
  // Fails where another dump is under way, or the file is none to write to.
  virtual base::Result<void> dump(base::Fd file, DumpDone done) = 0;
};

}  // namespace millrace::vmm

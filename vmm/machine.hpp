// Machine: one guest from its first instruction to its end: memory, vCPUs and their threads, the
// platform's devices, PCI.
//
// It is made anew for every start of the guest; consoles outlive it. Thread: one (the loop's),
// which is told of the end by a descriptor.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/boot.hpp"
#include "vmm/bus.hpp"
#include "vmm/console.hpp"
#include "vmm/cpu_state.hpp"
#include "vmm/hotplug_ports.hpp"
#include "vmm/ioapic.hpp"
#include "vmm/kvm_bar_slots.hpp"
#include "vmm/kvm_clock.hpp"
#include "vmm/kvm_cpu_model.hpp"
#include "vmm/kvm_interrupts.hpp"
#include "vmm/kvm_system.hpp"
#include "vmm/kvm_vcpu.hpp"
#include "vmm/kvm_vm.hpp"
#include "vmm/pci_root.hpp"
#include "vmm/platform.hpp"
#include "vmm/power.hpp"
#include "vmm/ram.hpp"
#include "vmm/serial.hpp"
#include "vmm/vcpu_gate.hpp"

namespace millrace::vmm {

// Puts one device together for the machine's doorbells, interrupts and memory.
using MakeFunction = std::function<base::Result<std::unique_ptr<PciFunction>>(
    Doorbells&, Interrupts&, const GuestRam&)>;

// The same for a function of the host, whose memory the guest gets mapped.
using MakePassthrough = std::function<base::Result<std::unique_ptr<PciFunction>>(
    BarSlots&, Interrupts&, const GuestRam&)>;

// A device and its name.
struct NamedFunction {
  std::string id;
  MakeFunction make;
  bool removable = false;         // goes behind a root port, also when there from the start
  MakePassthrough passthrough{};  // in place of `make`
};

// Where devices are (pci_layout.hpp), by id.
using DevicePlaces = std::map<std::string, unsigned>;

struct MachineConfig {
  BootConfig boot;
  RamConfig ram;
  unsigned cpus = 1;
  unsigned cpus_most = 0;                     // with those that may be added; 0: none
  const CpuModel* cpu_model = nullptr;        // nullptr: what KVM supports here
  std::vector<std::uint64_t> memory_added{};  // pieces, beside that of the start
  std::vector<NamedFunction> functions{};
  // Of those that were there when the guest ran before: it finds them where they were. The others
  // get the first places that are free.
  DevicePlaces places{};
  unsigned ports = 0;  // PCI root ports: pci_layout::ports_needed()
  // A device is gone, and all that it had is freed. Called on the loop's thread.
  std::function<void(const std::string& id)> on_unplugged{};
  // The guest's kernel panicked and runs its crash kernel. From a vCPU's thread.
  std::function<void()> on_crash_loaded{};
  bool paused = false;       // starts with its vCPUs standing still
  bool confined = false;     // in a sandbox: the threads narrow what they may do
  bool passthrough = false;  // the guest has functions of the host, or may get some
};

// How a guest's run ended.
enum class Ending { power_off, reset, panicked, failed };

class Machine {
 public:
  // `consoles`: one a serial port. All of it is made, nothing runs yet.
  static base::Result<std::unique_ptr<Machine>> make(const KvmSystem& system,
                                                     const MachineConfig& config,
                                                     const std::vector<Console*>& consoles);
  // Stops it, if it runs.
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  base::Result<void> start();
  // Readable once the guest came to its end; the vCPUs stand still soon after.
  [[nodiscard]] int ended_fd() const { return ended_.get(); }
  // Valid once ended_fd() is readable.
  [[nodiscard]] Ending ending() const;
  [[nodiscard]] std::string why() const;  // of Ending::failed

  // Devices, while the guest runs or before; machine_functions.cpp.
  //
  // Makes a device for this machine, which has not got it then. Thread: any.
  base::Result<std::unique_ptr<PciFunction>> make_function(const NamedFunction& function);
  // Whether plug() has a place for it now; the error says in one line why not.
  [[nodiscard]] base::Result<void> has_room_for(const std::string& id) const;
  // Gives the guest a device behind a free root port; it notices by itself. Fails with one
  // line: the id is taken, no port is free.
  base::Result<void> plug(const std::string& id, std::unique_ptr<PciFunction> function);
  // Asks the guest to let go of a device; on_unplugged says when it is gone. A guest that does not
  // react keeps it, and may be asked again after PciPort::patience. Fails with one line: no such
  // device, one on bus 0, which has no slot to be taken from, or one that the guest was just asked
  // for.
  base::Result<void> unplug(const std::string& id);
  // Takes a device behind a root port from the guest, whether that let go of it or not;
  // on_unplugged follows. Nothing happens where there is no such device.
  void take_away(const std::string& id);
  // The ids of the devices that are there.
  [[nodiscard]] std::vector<std::string> functions() const;
  [[nodiscard]] const DevicePlaces& places() const { return places_; }
  // Readable once a device may be taken away: then take_released().
  [[nodiscard]] int released_fd() const { return released_.get(); }
  void take_released();

  void press_power_button() { power_.press_power_button(); }
  // Adds vCPUs to a guest that runs, which is told of them and may take them into use. Fails where
  // the guest was started with room for fewer.
  base::Result<void> add_cpus(unsigned count);
  // Adds memory, which the guest is told of once every back-end has it: soon, if none hangs. Fails
  // where the guest was started with no room for it, and as GuestRam says.
  base::Result<void> add_memory(std::uint64_t bytes);
  // What was added, to be given to the next machine of the same guest. Of memory: piece by piece.
  [[nodiscard]] const std::vector<std::uint64_t>& memory_added() const { return memory_added_; }
  [[nodiscard]] unsigned cpus() const { return static_cast<unsigned>(vcpus_.size()); }
  // Stops the vCPUs where they are.
  void stop();

  // Both wait until the vCPUs stand still, or may run. The guest's clocks stand still with them;
  // the queues of its devices are served on, which is the back-ends' doing.
  void pause();
  void resume();

  // For a dump. The registers only while the vCPUs stand still.
  [[nodiscard]] const GuestRam& ram() const { return ram_; }
  [[nodiscard]] base::Result<std::vector<CpuState>> cpu_states();
  // The host's number of each vCPU's thread; 0: it does not run.
  [[nodiscard]] std::vector<int> thread_ids() const;

 private:
  // What every vCPU is made from, those that come later too.
  struct Processors {
    const KvmSystem& system;
    std::vector<kvm_cpuid_entry2> leaves;
    unsigned most;  // as many as the topology has room for
  };
  Machine(GuestRam ram, KvmVm vm, MemoryWindow high_window, Processors processors);
  base::Result<void> add_platform(const std::vector<Console*>& consoles);
  base::Result<void> add_pci(const MachineConfig& config);
  void remove_behind(unsigned port);
  base::Result<void> put_in(const std::string& id, base::Result<std::unique_ptr<PciFunction>> made,
                            unsigned place, bool running);
  [[nodiscard]] std::optional<unsigned> free_place(unsigned from) const;
  base::Result<void> make_vcpus(unsigned count);
  base::Result<void> give_memory(std::uint64_t bytes);
  void start_vcpus();
  void run_vcpu(KvmVcpu& vcpu, unsigned index);
  void kick_vcpus();
  void on_guest_event(GuestEvent event);
  void end(Ending ending, std::string why = {});

  const Processors processors_;
  GuestRam ram_;
  KvmVm vm_;
  KvmInterrupts interrupts_{vm_};
  KvmBarSlots bar_slots_{vm_};
  Bus ports_, memory_;
  Ioapic ioapic_{interrupts_};
  PowerPorts power_;
  HotplugPorts hotplug_;
  std::vector<std::uint64_t> memory_added_;
  KeyboardReset keyboard_;
  PanicPort panic_;
  std::vector<std::unique_ptr<Serial>> serials_;
  std::vector<Console*> consoles_;
  base::Fd released_;
  PciRoot pci_;
  DevicePlaces places_;
  std::function<void(const std::string&)> on_unplugged_;
  std::vector<std::unique_ptr<KvmVcpu>> vcpus_;
  std::vector<std::thread> threads_;
  VcpuGate gate_;
  KvmClock clock_{vm_};
  std::function<void()> on_crash_loaded_;
  bool confined_ = false, passthrough_ = false;
  std::atomic<bool> started_{false}, stopping_{false}, crash_said_{false};
  base::Fd ended_;
  mutable std::mutex mutex_;  // for the ending
  bool has_ended_ = false;
  Ending ending_ = Ending::failed;
  std::string why_;
};

}  // namespace millrace::vmm

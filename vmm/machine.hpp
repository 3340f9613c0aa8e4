// Machine: one guest from its first instruction to its end: memory, vCPUs and their threads, the
// platform's devices, PCI.
//
// It is made anew for every start of the guest; consoles outlive it. Thread: one (the loop's),
// which is told of the end by a descriptor.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/boot.hpp"
#include "vmm/bus.hpp"
#include "vmm/console.hpp"
#include "vmm/ioapic.hpp"
#include "vmm/kvm_interrupts.hpp"
#include "vmm/kvm_system.hpp"
#include "vmm/kvm_vcpu.hpp"
#include "vmm/kvm_vm.hpp"
#include "vmm/pci_root.hpp"
#include "vmm/platform.hpp"
#include "vmm/power.hpp"
#include "vmm/ram.hpp"
#include "vmm/serial.hpp"

namespace millrace::vmm {

// Puts one device together for the machine's doorbells, interrupts and memory.
using MakeFunction = std::function<base::Result<std::unique_ptr<PciFunction>>(
    Doorbells&, Interrupts&, const GuestRam&)>;

struct MachineConfig {
  BootConfig boot;
  RamConfig ram;
  unsigned cpus = 1;
  std::vector<MakeFunction> functions;  // slot 1 upwards
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
  void press_power_button() { power_.press_power_button(); }
  // Stops the vCPUs where they are.
  void stop();

 private:
  Machine(GuestRam ram, KvmVm vm, MemoryWindow high_window);
  base::Result<void> add_platform(const std::vector<Console*>& consoles);
  base::Result<void> add_functions(const MachineConfig& config);
  base::Result<void> add_vcpus(const KvmSystem& system,
                               const std::vector<kvm_cpuid_entry2>& supported, unsigned count);
  void run_vcpu(KvmVcpu& vcpu);
  void on_guest_event(GuestEvent event);
  void end(Ending ending, std::string why = {});

  GuestRam ram_;
  KvmVm vm_;
  KvmInterrupts interrupts_{vm_};
  Bus ports_, memory_;
  Ioapic ioapic_{interrupts_};
  PowerPorts power_;
  KeyboardReset keyboard_;
  PanicPort panic_;
  std::vector<std::unique_ptr<Serial>> serials_;
  std::vector<Console*> consoles_;
  PciRoot pci_;
  std::vector<std::unique_ptr<KvmVcpu>> vcpus_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false}, crash_said_{false};
  base::Fd ended_;
  mutable std::mutex mutex_;  // for the ending
  bool has_ended_ = false;
  Ending ending_ = Ending::failed;
  std::string why_;
};

}  // namespace millrace::vmm

// KvmVcpu: one vCPU of KVM: its state at the start, and its exits.
//
// Thread: made by one, then run by one; kick() from any.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "vmm/bus.hpp"
#include "vmm/cpu_state.hpp"
#include "vmm/entry_state.hpp"
#include "vmm/ioapic.hpp"
#include "vmm/kvm_cpuid.hpp"
#include "vmm/kvm_vm.hpp"

struct kvm_run;

namespace millrace::vmm {

// Who answers a vCPU's exits.
struct VcpuWorld {
  Bus& ports;
  Bus& memory;
  Ioapic& ioapic;
};

class KvmVcpu {
 public:
  enum class Exit {
    go_on,     // handled; run again
    kicked,    // a signal or kick()
    shutdown,  // triple fault: a processor's way to ask for a reset
    reset,     // KVM says that the guest asked for it
    broken,    // why() says what
  };

  static base::Result<std::unique_ptr<KvmVcpu>> make(const KvmSystem& system, const KvmVm& vm,
                                                     std::span<const kvm_cpuid_entry2> supported,
                                                     unsigned index, unsigned count,
                                                     VcpuWorld world);
  ~KvmVcpu();
  KvmVcpu(const KvmVcpu&) = delete;
  KvmVcpu& operator=(const KvmVcpu&) = delete;

  // The first vCPU's registers. The others wait for its start-up interrupt.
  base::Result<void> set_entry(const EntryState& entry);
  // Enters the guest until it needs us once.
  Exit run();
  // The next (or present) run() comes back as soon as a signal reaches its thread; a run() that
  // begins after this comes back at once.
  void kick();
  // Takes a kick() back, which its thread does once it has seen it.
  void unkick();
  // The host's number of the thread that runs it; 0: none does. For people.
  [[nodiscard]] int thread_id() const { return thread_id_.load(); }
  void set_thread_id(int id) { thread_id_.store(id); }
  // While it stands still, from any thread.
  [[nodiscard]] base::Result<CpuState> state() const;
  // Tells the guest's clock that it stood still, so that its watchdogs do not bark.
  void note_pause() const;
  [[nodiscard]] const std::string& why() const { return why_; }

 private:
  KvmVcpu(base::Fd fd, VcpuWorld world) : fd_{std::move(fd)}, world_{world} {}
  base::Result<void> set_cpuid(std::span<const kvm_cpuid_entry2> supported, unsigned index,
                               unsigned count, bool tsc_deadline);
  base::Result<void> set_registers_of_state();
  base::Result<void> make_known();
  Exit handle();
  void handle_port();
  void handle_memory();
  Exit broken(std::string why);

  base::Fd fd_;
  VcpuWorld world_;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
  std::string why_;
  std::atomic<int> thread_id_{0};
};

}  // namespace millrace::vmm

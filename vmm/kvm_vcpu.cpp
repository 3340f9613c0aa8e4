#include "vmm/kvm_vcpu.hpp"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>

#include "base/error.hpp"
#include "base/hex.hpp"
#include "vmm/kvm_list.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

// Model-specific registers as firmware leaves them (Intel SDM volume 4).
struct Msr {
  std::uint32_t index;
  std::uint64_t value;
  bool needed;
};
constexpr std::array msrs{
    Msr{0x2ff, 0x806, true},  // MTRRdefType: MTRRs on, everything write-back
    Msr{0x1a0, 1, false},     // MISC_ENABLE: fast strings; not on every processor
};

}  // namespace

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::make(const KvmSystem& system, const KvmVm& vm,
                                               std::span<const kvm_cpuid_entry2> supported,
                                               unsigned index, unsigned count, VcpuWorld world) {
  const int fd = ::ioctl(vm.fd(), KVM_CREATE_VCPU, static_cast<unsigned long>(index));
  if (fd < 0) return fail_errno("KVM makes no vCPU " + std::to_string(index));
  std::unique_ptr<KvmVcpu> vcpu{new KvmVcpu{base::Fd{fd}, world}};
  void* mapped = ::mmap(nullptr, system.run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return fail_errno("cannot map a vCPU's page");
  vcpu->run_ = static_cast<kvm_run*>(mapped);
  vcpu->run_size_ = system.run_size();
  const bool deadline = system.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  // CPUID comes first: it decides which of the other registers there are.
  auto ok = vcpu->set_cpuid(supported, index, count, deadline);
  if (ok) ok = vcpu->set_registers_of_state();
  if (ok) ok = vcpu->make_known();
  if (!ok) return base::Unexpected{ok.error()};
  return vcpu;
}

KvmVcpu::~KvmVcpu() {
  if (run_ != nullptr) ::munmap(run_, run_size_);
}

Result<void> KvmVcpu::set_cpuid(std::span<const kvm_cpuid_entry2> supported, unsigned index,
                                unsigned count, bool tsc_deadline) {
  CpuidConfig config{.index = index, .count = count, .tsc_deadline = tsc_deadline};
  const int khz = ::ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0);
  if (khz > 0) config.tsc_khz = static_cast<std::uint32_t>(khz);
  const auto leaves = guest_cpuid({supported.begin(), supported.end()}, config);
  CpuidList list{leaves};
  if (::ioctl(fd_.get(), set_cpuid2, list.data()) == 0) return {};
  return fail_errno("KVM refuses the CPUID leaves of vCPU " + std::to_string(index));
}

Result<void> KvmVcpu::set_registers_of_state() {
  for (const auto& msr : msrs) {
    kvm_msr_entry entry{};
    entry.index = msr.index;
    entry.data = msr.value;
    MsrList list{std::span<const kvm_msr_entry>{&entry, 1}};
    if (::ioctl(fd_.get(), set_msrs, list.data()) == 1 || !msr.needed) continue;
    return fail("KVM refuses model-specific register " + base::format_hex(msr.index));
  }
  return {};
}

// KVM looks up in a table which vCPU a message is for, and made it when this one was not there yet.
// A local APIC that is written makes it make another; others may run meanwhile.
Result<void> KvmVcpu::make_known() {
  kvm_lapic_state apic{};
  if (::ioctl(fd_.get(), KVM_GET_LAPIC, &apic) == 0 &&
      ::ioctl(fd_.get(), KVM_SET_LAPIC, &apic) == 0) {
    return {};
  }
  return fail_errno("KVM refuses a vCPU's local APIC");
}

void KvmVcpu::kick() {
  std::atomic_ref{run_->immediate_exit}.store(1);
}

void KvmVcpu::unkick() {
  std::atomic_ref{run_->immediate_exit}.store(0);
}

KvmVcpu::Exit KvmVcpu::run() {
  if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) return handle();
  if (errno == EINTR || errno == EAGAIN) return Exit::kicked;
  return broken(fail_errno("KVM cannot run a vCPU").error.message);
}

KvmVcpu::Exit KvmVcpu::handle() {
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      handle_port();
      return Exit::go_on;
    case KVM_EXIT_MMIO:
      handle_memory();
      return Exit::go_on;
    case KVM_EXIT_IOAPIC_EOI:
      world_.ioapic.end_of_interrupt(run_->eoi.vector);
      return Exit::go_on;
    case KVM_EXIT_INTR:
      return Exit::kicked;
    case KVM_EXIT_SHUTDOWN:
      return Exit::shutdown;
    case KVM_EXIT_SYSTEM_EVENT:
      return run_->system_event.type == KVM_SYSTEM_EVENT_RESET ? Exit::reset : Exit::shutdown;
    case KVM_EXIT_FAIL_ENTRY:
      return broken("the processor refuses the guest's state, reason " +
                    base::format_hex(run_->fail_entry.hardware_entry_failure_reason));
    case KVM_EXIT_INTERNAL_ERROR:
      return broken("KVM cannot go on (internal error " + std::to_string(run_->internal.suberror) +
                    "): the guest used an instruction that KVM would have to emulate and cannot");
    default:
      return broken("KVM left the guest for reason " + std::to_string(run_->exit_reason) +
                    ", which nobody asked for");
  }
}

void KvmVcpu::handle_port() {
  const auto& io = run_->io;
  auto* data = reinterpret_cast<std::byte*>(run_) + io.data_offset;
  for (std::uint32_t i = 0; i < io.count; ++i, data += io.size) {
    const std::span bytes{data, io.size};
    if (io.direction == KVM_EXIT_IO_IN) {
      world_.ports.read(io.port, bytes);
    } else {
      world_.ports.write(io.port, bytes);
    }
  }
}

void KvmVcpu::handle_memory() {
  auto& mmio = run_->mmio;
  const auto size = std::min<std::size_t>(mmio.len, sizeof mmio.data);
  const auto bytes = std::as_writable_bytes(std::span{mmio.data}).first(size);
  if (mmio.is_write != 0) {
    world_.memory.write(mmio.phys_addr, bytes);
  } else {
    world_.memory.read(mmio.phys_addr, bytes);
  }
}

KvmVcpu::Exit KvmVcpu::broken(std::string why) {
  kvm_regs registers{};
  if (::ioctl(fd_.get(), KVM_GET_REGS, &registers) == 0)
    why += ", at " + base::format_hex(registers.rip);
  why_ = std::move(why);
  return Exit::broken;
}

}  // namespace millrace::vmm

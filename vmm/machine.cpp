#include "vmm/machine.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

// Gets a vCPU's thread out of the guest. Its handler does nothing; that it interrupts is enough.
int kick_signal() {
  return SIGRTMIN;
}

void install_kick_handler() {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  ::sigemptyset(&action.sa_mask);
  ::sigaction(kick_signal(), &action, nullptr);
}

unsigned physical_bits(const std::vector<kvm_cpuid_entry2>& leaves) {
  constexpr std::uint32_t sizes_leaf = 0x8000'0008;
  constexpr unsigned at_least = 36;
  for (const auto& leaf : leaves) {
    if (leaf.function == sizes_leaf) return std::max(leaf.eax & 0xff, at_least);
  }
  return at_least;
}

}  // namespace

Machine::Machine(GuestRam ram, KvmVm vm, MemoryWindow high_window)
    : ram_{std::move(ram)},
      vm_{std::move(vm)},
      power_{[this](GuestEvent event) { on_guest_event(event); },
             [this](bool high) { ioapic_.set_line(power_pin, high); }},
      keyboard_{[this](GuestEvent event) { on_guest_event(event); }},
      panic_{[this](GuestEvent event) { on_guest_event(event); }},
      pci_{ports_, memory_, high_window, [this] { on_guest_event(GuestEvent::reset); }} {}

Result<std::unique_ptr<Machine>> Machine::make(const KvmSystem& system, const MachineConfig& config,
                                               const std::vector<Console*>& consoles) {
  const auto most = std::min(cpus_max, system.vcpus_max());
  if (config.cpus == 0 || config.cpus > most) {
    return fail("a guest has 1 to " + std::to_string(most) + " vCPUs here, not " +
                std::to_string(config.cpus));
  }
  auto ram = GuestRam::make(config.ram);
  if (!ram) return base::Unexpected{ram.error()};
  auto supported = supported_cpuid(system);
  if (!supported) return base::Unexpected{supported.error()};
  const auto window = choose_high_window(*ram, physical_bits(*supported));
  if (!window) return base::Unexpected{window.error()};
  const auto acpi = make_acpi({config.cpus, *window});
  if (!acpi) return base::Unexpected{acpi.error()};
  const auto entry = vmm::boot(config.boot, *acpi, *ram);
  if (!entry) return base::Unexpected{entry.error()};
  auto vm = KvmVm::make(system, *ram);
  if (!vm) return base::Unexpected{vm.error()};

  std::unique_ptr<Machine> machine{new Machine{*std::move(ram), *std::move(vm), *window}};
  auto ok = machine->add_platform(consoles);
  if (ok) ok = machine->add_functions(config);
  if (ok) ok = machine->add_vcpus(system, *supported, config.cpus);
  if (ok) ok = machine->vcpus_.front()->set_entry(*entry);
  if (!ok) return base::Unexpected{ok.error()};
  return machine;
}

Result<void> Machine::add_platform(const std::vector<Console*>& consoles) {
  ended_ = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!ended_) return fail_errno("cannot make an eventfd");
  CHECK(consoles.size() <= serial_places.size());
  consoles_ = consoles;
  auto ok = memory_.map(Ioapic::base_address, Ioapic::size, ioapic_);
  if (ok) ok = ports_.map(PowerPorts::port, PowerPorts::size, power_);
  if (ok) ok = ports_.map(KeyboardReset::port, 1, keyboard_);
  if (ok) ok = ports_.map(PanicPort::port, 1, panic_);
  for (std::size_t i = 0; ok && i < consoles.size(); ++i) {
    auto* const console = consoles[i];
    const auto pin = serial_places[i].pin;
    serials_.push_back(std::make_unique<Serial>(Serial::Wires{
        .interrupt = [this, pin](bool high) { ioapic_.set_line(pin, high); },
        .transmit = [console](std::byte byte) { console->transmit(byte); },
        .room = [console] { console->room(); },
    }));
    ok = ports_.map(serial_places[i].port, Serial::size, *serials_.back());
    console->set_input([serial = serials_.back().get()](std::span<const std::byte> bytes) {
      return serial->receive(bytes);
    });
  }
  if (ok) ok = pci_.start();
  return ok;
}

Result<void> Machine::add_functions(const MachineConfig& config) {
  unsigned slot = 1;
  for (const auto& make : config.functions) {
    auto function = make(vm_, interrupts_, ram_);
    if (!function) return base::Unexpected{function.error()};
    if (auto ok = pci_.plug(slot, *std::move(function)); !ok) return ok;
    ++slot;
  }
  return {};
}

Result<void> Machine::add_vcpus(const KvmSystem& system,
                                const std::vector<kvm_cpuid_entry2>& supported, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    auto vcpu = KvmVcpu::make(system, vm_, supported, i, count, {ports_, memory_, ioapic_});
    if (!vcpu) return base::Unexpected{vcpu.error()};
    vcpus_.push_back(*std::move(vcpu));
  }
  return {};
}

Machine::~Machine() {
  stop();
  for (auto* const console : consoles_) console->set_input({});
}

Result<void> Machine::start() {
  install_kick_handler();
  for (const auto& vcpu : vcpus_) {
    threads_.emplace_back([this, &vcpu = *vcpu] { run_vcpu(vcpu); });
    const auto name = "vcpu " + std::to_string(threads_.size() - 1);
    ::pthread_setname_np(threads_.back().native_handle(), name.c_str());
  }
  return {};
}

void Machine::run_vcpu(KvmVcpu& vcpu) {
  sigset_t kick;
  ::sigemptyset(&kick);
  ::sigaddset(&kick, kick_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &kick,
                    nullptr);  // whoever started this process may have blocked it
  while (!stopping_.load()) {
    switch (vcpu.run()) {
      case KvmVcpu::Exit::go_on:
      case KvmVcpu::Exit::kicked:
        break;
      case KvmVcpu::Exit::shutdown:
      case KvmVcpu::Exit::reset:
        return end(Ending::reset);
      case KvmVcpu::Exit::broken:
        return end(Ending::failed, vcpu.why());
    }
  }
}

void Machine::stop() {
  stopping_.store(true);
  // A thread that is about to enter the guest comes back at once; one that is in it is signalled.
  for (const auto& vcpu : vcpus_) vcpu->kick();
  for (auto& thread : threads_) ::pthread_kill(thread.native_handle(), kick_signal());
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

void Machine::on_guest_event(GuestEvent event) {
  switch (event) {
    case GuestEvent::power_off:
      return end(Ending::power_off);
    case GuestEvent::reset:
      return end(Ending::reset);
    case GuestEvent::panicked:
      return end(Ending::panicked);
    case GuestEvent::crash_loaded:
      if (!crash_said_.exchange(true)) {
        spdlog::warn("the guest's kernel panicked and runs its crash kernel");
      }
      return;
  }
}

void Machine::end(Ending ending, std::string why) {
  {
    const std::lock_guard lock{mutex_};
    if (has_ended_) return;
    has_ended_ = true;
    ending_ = ending;
    why_ = std::move(why);
  }
  stopping_.store(true);
  constexpr std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(ended_.get(), &one, sizeof one);
}

Ending Machine::ending() const {
  const std::lock_guard lock{mutex_};
  return ending_;
}

std::string Machine::why() const {
  const std::lock_guard lock{mutex_};
  return why_;
}

}  // namespace millrace::vmm

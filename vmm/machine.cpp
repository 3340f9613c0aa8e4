#include "vmm/machine.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/sandbox.hpp"

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

Machine::Machine(GuestRam ram, KvmVm vm, MemoryWindow high_window, Processors processors)
    : processors_{std::move(processors)},
      ram_{std::move(ram)},
      vm_{std::move(vm)},
      power_{[this](GuestEvent event) { on_guest_event(event); },
             [this](bool high) { ioapic_.set_line(power_pin, high); }},
      keyboard_{[this](GuestEvent event) { on_guest_event(event); }},
      panic_{[this](GuestEvent event) { on_guest_event(event); }},
      pci_{ports_, memory_, high_window, [this] { on_guest_event(GuestEvent::reset); }} {}

Result<std::unique_ptr<Machine>> Machine::make(const KvmSystem& system, const MachineConfig& config,
                                               const std::vector<Console*>& consoles) {
  const auto most = std::min(cpus_max, system.vcpus_max());
  const auto cpus = std::max(config.cpus, config.cpus_most);
  if (config.cpus == 0 || cpus > most) {
    return fail("a guest has 1 to " + std::to_string(most) + " vCPUs here, not " +
                std::to_string(cpus));
  }
  auto ram = GuestRam::make(config.ram);
  if (!ram) return base::Unexpected{ram.error()};
  auto leaves = processor_cpuid(system, config.cpu_model);
  if (!leaves) return base::Unexpected{leaves.error()};
  const auto window = choose_high_window(*ram, physical_bits(*leaves));
  if (!window) return base::Unexpected{window.error()};
  const auto acpi = make_acpi({.cpus = config.cpus,
                               .high_window = *window,
                               .buses = 1 + config.ports,
                               .cpus_most = cpus,
                               .memory_slots = config.ram.slots});
  if (!acpi) return base::Unexpected{acpi.error()};
  const auto entry = vmm::boot(config.boot, *acpi, *ram);
  if (!entry) return base::Unexpected{entry.error()};
  auto vm = KvmVm::make(system, *ram);
  if (!vm) return base::Unexpected{vm.error()};

  Processors processors{system, *std::move(leaves), cpus};
  std::unique_ptr<Machine> machine{
      new Machine{*std::move(ram), *std::move(vm), *window, std::move(processors)}};
  machine->on_crash_loaded_ = config.on_crash_loaded;
  if (config.paused) machine->gate_.close();
  machine->confined_ = config.confined;
  machine->passthrough_ = config.passthrough;
  auto ok = machine->add_platform(consoles);
  if (ok) ok = machine->add_pci(config);
  if (ok) ok = machine->make_vcpus(config.cpus);
  for (std::size_t i = 0; ok && i < config.memory_added.size(); ++i) {
    ok = machine->give_memory(config.memory_added[i]);
  }
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
  if (ok) ok = ports_.map(HotplugPorts::port, HotplugPorts::size, hotplug_);
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
  return ok;
}

Result<void> Machine::make_vcpus(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    const auto index = static_cast<unsigned>(vcpus_.size());
    auto vcpu = KvmVcpu::make(processors_.system, vm_, processors_.leaves, index, processors_.most,
                              {ports_, memory_, ioapic_});
    if (!vcpu) return base::Unexpected{vcpu.error()};
    vcpus_.push_back(*std::move(vcpu));
  }
  hotplug_.set_cpus(static_cast<unsigned>(vcpus_.size()));
  return {};
}

Machine::~Machine() {
  stop();
  for (auto* const console : consoles_) console->set_input({});
}

Result<void> Machine::start() {
  install_kick_handler();
  started_.store(true);
  start_vcpus();
  return {};
}

// Those that have no thread yet.
void Machine::start_vcpus() {
  while (threads_.size() < vcpus_.size()) {
    const auto index = static_cast<unsigned>(threads_.size());
    threads_.emplace_back([this, &vcpu = *vcpus_[index], index] { run_vcpu(vcpu, index); });
  }
}

void Machine::run_vcpu(KvmVcpu& vcpu, unsigned index) {
  // By the thread itself: another thread's name is a file.
  ::pthread_setname_np(::pthread_self(), ("vcpu " + std::to_string(index)).c_str());
  sigset_t kick;
  ::sigemptyset(&kick);
  ::sigaddset(&kick, kick_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &kick,
                    nullptr);  // whoever started this process may have blocked it
  vcpu.set_thread_id(::gettid());
  const VcpuGate::Visitor visitor{gate_};
  visitor.pass();
  if (confined_) {
    if (auto ok = confine_thread(ThreadKind::vcpu, passthrough_); !ok) {
      return end(Ending::failed, ok.error().message);
    }
  }
  while (!stopping_.load()) {
    switch (vcpu.run()) {
      case KvmVcpu::Exit::go_on:
        break;
      case KvmVcpu::Exit::kicked:
        // In this order: a kick that comes after it finds the gate closed already, and stays.
        vcpu.unkick();
        visitor.pass();
        break;
      case KvmVcpu::Exit::shutdown:
        // A kernel's last way to restart, and what becomes of one that lost its way: say so.
        // Where it happened nobody knows any more: some processors reset the vCPU with it.
        spdlog::warn("vCPU {} was shut down by a triple fault: the guest is reset", index);
        return end(Ending::reset);
      case KvmVcpu::Exit::reset:
        return end(Ending::reset);
      case KvmVcpu::Exit::broken:
        return end(Ending::failed, vcpu.why());
    }
  }
}

// A thread that is about to enter the guest comes back at once; one that is in it is signalled.
void Machine::kick_vcpus() {
  for (const auto& vcpu : vcpus_) vcpu->kick();
  for (auto& thread : threads_) ::pthread_kill(thread.native_handle(), kick_signal());
}

void Machine::stop() {
  stopping_.store(true);
  kick_vcpus();
  gate_.open();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

void Machine::pause() {
  gate_.close();
  kick_vcpus();
  gate_.wait_until_still();
  clock_.hold();
}

void Machine::resume() {
  clock_.release();
  for (const auto& vcpu : vcpus_) vcpu->note_pause();
  gate_.open();
}

Result<std::vector<CpuState>> Machine::cpu_states() {
  std::vector<CpuState> states;
  for (const auto& vcpu : vcpus_) {
    auto state = vcpu->state();
    if (!state) return base::Unexpected{state.error()};
    states.push_back(*state);
  }
  return states;
}

std::vector<int> Machine::thread_ids() const {
  std::vector<int> ids;
  for (const auto& vcpu : vcpus_) ids.push_back(vcpu->thread_id());
  return ids;
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
        if (on_crash_loaded_) on_crash_loaded_();
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

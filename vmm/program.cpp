#include "vmm/program.hpp"

#include <sys/epoll.h>

#include <csignal>
#include <cstdio>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/device_options.hpp"
#include "vmm/memory_error.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

constexpr std::chrono::seconds patience{10};

int status_of(Ending ending) {
  switch (ending) {
    case Ending::power_off:
      return exit_power_off;
    case Ending::reset:
      return exit_reset;
    case Ending::panicked:
      return exit_panicked;
    case Ending::failed:
      break;
  }
  return exit_failed;
}

// A kernel of Linux's own kind needs a processor that runs guests; others may be small enough for
// KVM to interpret.
Result<void> check_kernel(const KvmSystem& system, const BootConfig& boot) {
  const auto file = BootFile::open(boot.kernel, "kernel");
  if (!file) return base::Unexpected{file.error()};
  const auto kind = identify_kernel(*file);
  if (!kind) return base::Unexpected{kind.error()};
  auto hardware = system.can_run_stock_kernels();
  if (hardware || *kind == KernelKind::bzimage) return hardware;
  spdlog::warn("{}", hardware.error().message);
  return {};
}

}  // namespace

int Program::run() {
  const auto status = run_all();
  if (status) return *status;
  std::fprintf(stderr, "millrace-vmm: %s\n", status.error().message.c_str());
  return exit_failed;
}

Result<int> Program::run_all() {
  const auto config = make_config();
  if (!config) return base::Unexpected{config.error()};
  const auto system = KvmSystem::open();
  if (!system) return base::Unexpected{system.error()};
  if (auto ok = check_kernel(*system, options_.boot); !ok) return base::Unexpected{ok.error()};
  if (auto ok = set_up(); !ok) return base::Unexpected{ok.error()};
  for (;;) {
    const auto ending = run_once(*system, *config);
    if (!ending) return base::Unexpected{ending.error()};
    const bool again = *ending == Ending::reset && options_.restart && !asked_to_stop_;
    if (!again) return status_of(*ending);
    spdlog::info("the guest starts again");
  }
}

Result<void> Program::set_up() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  // Every thread made from here on has them blocked too.
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  end_on_memory_error();
  signals_ = base::Fd{::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)};
  if (!signals_) return fail_errno("cannot make a signalfd");
  auto watch = loop_.watch(signals_.get(), EPOLLIN, [this](std::uint32_t) { on_signal(); });
  if (!watch) return base::Unexpected{watch.error()};
  signal_watch_ = *std::move(watch);
  for (const auto& where : options_.consoles) {
    auto console = Console::make(loop_, where, [this] { ask_to_stop(); });
    if (!console) return base::Unexpected{console.error()};
    consoles_.push_back(*std::move(console));
  }
  if (options_.ram.page_size == 0 && !GuestRam::transparent_huge_pages()) {
    spdlog::info(
        "this host gives shared memory no transparent huge pages: see "
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled, or use --pages");
  }
  return {};
}

Result<MachineConfig> Program::make_config() const {
  MachineConfig config{options_.boot, options_.ram, options_.cpus, {}};
  for (const auto& device : options_.devices) {
    auto make = make_device(device, [this] { return signals_.get(); });
    if (!make) return base::Unexpected{make.error()};
    config.functions.push_back(*std::move(make));
  }
  return config;
}

Result<Ending> Program::run_once(const KvmSystem& system, const MachineConfig& config) {
  std::vector<Console*> consoles;
  for (const auto& console : consoles_) consoles.push_back(console.get());
  auto machine = Machine::make(system, config, consoles);
  if (!machine) return base::Unexpected{machine.error()};
  auto watch =
      loop_.watch((*machine)->ended_fd(), EPOLLIN, [this](std::uint32_t) { loop_.stop(); });
  if (!watch) return base::Unexpected{watch.error()};
  if (auto ok = (*machine)->start(); !ok) return base::Unexpected{ok.error()};
  machine_ = machine->get();
  loop_.run();
  machine_ = nullptr;
  (*machine)->stop();
  if (ended_by_force_) return fail("the guest was stopped before it had powered itself off");
  if ((*machine)->ending() == Ending::failed) return fail((*machine)->why());
  return (*machine)->ending();
}

void Program::on_signal() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    ask_to_stop();
  }
}

void Program::ask_to_stop() {
  if (machine_ == nullptr) return;
  if (asked_to_stop_) {
    ended_by_force_ = true;
    return loop_.stop();
  }
  asked_to_stop_ = true;
  spdlog::info("the guest is asked to power off");
  machine_->press_power_button();
  patience_ = loop_.after(patience, [this] { ask_to_stop(); });
}

}  // namespace millrace::vmm

#include "vmm/program.hpp"

#include <sys/epoll.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "vmm/device_options.hpp"
#include "vmm/memory_error.hpp"
#include "vmm/sandbox.hpp"

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
Result<void> check_kernel(const KvmSystem& system, const BootFile& file) {
  const auto kind = identify_kernel(file);
  if (!kind) return base::Unexpected{kind.error()};
  auto hardware = system.can_run_stock_kernels();
  if (hardware || *kind == KernelKind::bzimage) return hardware;
  spdlog::warn("{}", hardware.error().message);
  return {};
}

// A device takes a dozen descriptors and more for its queues, and many a shell allows 1024.
void allow_all_descriptors() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int Program::run() {
  const auto status = run_all();
  if (status) return *status;
  std::fprintf(stderr, "millrace-vmm: %s\n", status.error().message.c_str());
  return exit_failed;
}

Result<int> Program::run_all() {
  // A guest that starts again gets the same files, whatever has become of their paths.
  if (auto ok = keep_open(boot_); !ok) return base::Unexpected{ok.error()};
  cpus_ = options_.cpus;
  for (const auto& device : options_.devices) devices_.push_back({.option = device});
  if (const auto config = make_config(); !config) return base::Unexpected{config.error()};
  const auto system = KvmSystem::open();
  if (!system) return base::Unexpected{system.error()};
  if (auto ok = check_kernel(*system, *boot_.kernel_file); !ok) {
    return base::Unexpected{ok.error()};
  }
  if (auto ok = set_up(); !ok) return base::Unexpected{ok.error()};
  if (auto ok = shut_in(); !ok) return base::Unexpected{ok.error()};
  for (;;) {
    const auto config = make_config();
    if (!config) return base::Unexpected{config.error()};
    const auto ending = run_once(*system, *config);
    if (!ending) return base::Unexpected{ending.error()};
    const bool wanted = std::exchange(reset_wanted_, false);
    const bool again = *ending == Ending::reset && (options_.restart || wanted) && !asked_to_stop_;
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
  allow_all_descriptors();
  end_on_memory_error();
  signals_ = base::Fd{::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)};
  if (!signals_) return fail_errno("cannot make a signalfd");
  auto watch = loop_.watch(signals_.get(), EPOLLIN, [this](std::uint32_t) { on_signal(); });
  if (!watch) return base::Unexpected{watch.error()};
  signal_watch_ = *std::move(watch);
  if (auto ok = set_up_control(); !ok) return ok;
  if (auto ok = set_up_functions(); !ok) return ok;
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

Result<void> Program::shut_in() const {
  if (!options_.sandbox) {
    spdlog::warn("the sandbox is off: this process may open files and make any system call");
    return {};
  }
  std::vector<std::string> folders;  // in which sockets are removed at the end
  const auto add = [&folders](const std::string& path) {
    if (!path.empty()) folders.push_back(std::filesystem::absolute(path).parent_path());
  };
  add(options_.control);
  for (const auto& console : options_.consoles) add(Console::socket_path(console));
  return enter_sandbox(folders, functions_ != nullptr);
}

Result<MachineConfig> Program::make_config() {
  ++machines_;
  MachineConfig config;
  config.boot = boot_;
  config.ram = options_.ram;
  config.cpus = cpus_;
  config.cpus_most = options_.cpus_most;
  config.cpu_model = options_.cpu_model;
  config.memory_added = memory_added_;
  config.confined = options_.sandbox;
  config.passthrough = functions_ != nullptr;
  for (const auto& device : devices_) {
    auto function = function_of(device.option);
    if (!function) return base::Unexpected{function.error()};
    config.functions.push_back(*std::move(function));
  }
  config.places = places_;
  config.ports = options_.pci_ports();
  config.on_unplugged = [this](const std::string& id) { on_unplugged(id); };
  config.on_crash_loaded = [this] {
    mailbox_->post([this] { emit("GUEST_CRASHLOADED", {{"action", "run"}}); });
  };
  config.paused = paused_;
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
  auto released = loop_.watch((*machine)->released_fd(), EPOLLIN,
                              [&machine](std::uint32_t) { (*machine)->take_released(); });
  if (!released) return base::Unexpected{released.error()};
  if (auto ok = (*machine)->start(); !ok) return base::Unexpected{ok.error()};
  machine_ = machine->get();
  still_ = config.paused;
  loop_.run();
  watch->reset();
  stop_adding();
  wanted_back_.clear();
  (*machine)->stop();
  (*machine)->take_released();  // what the guest let go of in its last moment
  places_ = (*machine)->places();
  cpus_ = (*machine)->cpus();
  memory_added_ = (*machine)->memory_added();
  if (ended_by_force_) emit("SHUTDOWN", {{"guest", false}, {"reason", "host-signal"}});
  if (!ended_by_force_ && !reset_wanted_ && !quit_wanted_) {
    if ((*machine)->ending() == Ending::panicked) dump_panicked();
    tell_end((*machine)->ending());
  }
  finish_dump();
  machine_ = nullptr;
  if (!failure_.empty()) return fail(failure_);
  if (quit_wanted_) return Ending::power_off;
  if (reset_wanted_ && !ended_by_force_) return Ending::reset;
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

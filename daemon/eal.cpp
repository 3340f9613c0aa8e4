#include "daemon/eal.hpp"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <sched.h>
#include <signal.h>

#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "base/error.hpp"

namespace millrace::daemon {

namespace {

// An address that no PCI function has. Where something is allowed by name, the EAL takes nothing
// else by itself at its start; --no-pci would also refuse what an uplink names later.
constexpr const char* no_function = "ffff:ff:1f.7";

bool running = false;
std::optional<base::Error> failure;

// "0,1,4": the CPUs that the calling thread may run on.
std::string list_of(const cpu_set_t& cpus) {
  std::string list;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &cpus)) continue;
    if (!list.empty()) list += ',';
    list += std::to_string(cpu);
  }
  return list;
}

int init(unsigned memory_mb, bool hugepages, const cpu_set_t& cpus) {
  // One lcore that may run everywhere is the control thread; reactors are threads of our own.
  std::vector<std::string> words{"millraced",
                                 "--no-telemetry",
                                 "--iova-mode=va",
                                 "-m",
                                 std::to_string(memory_mb),
                                 "--lcores",
                                 "0@(" + list_of(cpus) + ")",
                                 "--log-level",
                                 "*:error",
                                 "--log-level",
                                 "pmd.net.tap:critical"};  // it grumbles at every start
  std::error_code none;
  if (std::filesystem::is_directory("/sys/bus/pci/devices", none)) {
    words.insert(words.end(), {"--allow", no_function});
  } else {
    words.emplace_back("--no-pci");
  }
  // Either way nothing of it appears in a file system.
  if (hugepages) {
    words.emplace_back("--in-memory");
  } else {
    words.insert(words.end(), {"--no-huge", "--no-shconf"});
  }
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  return rte_eal_init(static_cast<int>(arguments.size()), arguments.data());
}

}  // namespace

base::Result<void> start_eal(unsigned memory_mb, bool hugepages) {
  if (running) return {};
  if (failure) return base::Unexpected{*failure};
  cpu_set_t cpus;
  if (::sched_getaffinity(0, sizeof(cpus), &cpus) != 0) {
    return base::fail_errno("cannot read the CPU affinity");
  }
  // Threads that the EAL makes inherit this mask: a signal is for the control thread alone.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int result = init(memory_mb, hugepages, cpus);
  const int reason = rte_errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::sched_setaffinity(0, sizeof(cpus), &cpus);
  if (result < 0) {
    failure = base::Error{std::string{"cannot start DPDK: "} + rte_strerror(reason)};
    if (hugepages) {
      failure->message += "; it takes " + std::to_string(memory_mb) +
                          " MiB of hugepages ([memory] dpdk_mb): HugePages_Free in /proc/meminfo "
                          "says what is there";
    }
    return base::Unexpected{*failure};
  }
  running = true;
  return {};
}

bool eal_started() noexcept {
  return running;
}

bool register_reactor_thread() noexcept {
  if (rte_lcore_id() != LCORE_ID_ANY) return true;
  return rte_thread_register() == 0;
}

}  // namespace millrace::daemon

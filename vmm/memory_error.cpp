#include "vmm/memory_error.hpp"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string_view>

#include "vmm/options.hpp"

namespace millrace::vmm {

namespace {

// A signal handler may neither allocate nor lock: it writes pieces.
void say(std::string_view text) {
  [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, text.data(), text.size());
}

void on_sigbus(int signal, siginfo_t* info, void*) {
  const int saved_errno = errno;
  if (info->si_code == BUS_MCEERR_AR) {
    say("millrace-vmm: a hardware memory error in this guest's memory: the guest is ended\n");
    ::_exit(exit_failed);
  }
  if (info->si_code == BUS_MCEERR_AO) {
    say("millrace-vmm: a hardware memory error in this guest's memory, not used so far\n");
  } else {
    ::signal(signal, SIG_DFL);
    // A fault comes back by itself when the access is tried again; a signal that was sent does not.
    if (info->si_code <= 0) ::raise(signal);
  }
  errno = saved_errno;
}

}  // namespace

void end_on_memory_error() {
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace millrace::vmm

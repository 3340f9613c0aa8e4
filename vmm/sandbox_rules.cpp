// The lists of system calls. What glibc's allocator, threads and clocks need is on all of them.
#include <asm/ioctls.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>

#include "vfio/calls.hpp"
#include "vmm/kvm_calls.hpp"
#include "vmm/sandbox.hpp"

namespace millrace::vmm {

namespace {

using Rules = std::vector<CallRule>;

Rules unconditional(std::initializer_list<int> calls) {
  Rules rules;
  for (const int call : calls) rules.push_back({.call = call});
  return rules;
}

void add(Rules& rules, Rules more) {
  rules.insert(rules.end(), more.begin(), more.end());
}

CallRule requests(const std::vector<std::uint32_t>& allowed) {
  CallRule rule{.call = SYS_ioctl, .argument = 1};
  for (const auto request : allowed) rule.choices.push_back({request});
  return rule;
}

// Memory is never executable: [prot & PROT_EXEC] == 0.
CallRule not_executable(int call) {
  return {.call = call, .argument = 2, .choices = {{0, PROT_EXEC}}};
}

CallRule unix_only(int call) {
  return {.call = call, .argument = 0, .choices = {{AF_UNIX}}};
}

Rules for_every_thread() {
  auto rules = unconditional({SYS_read,
                              SYS_write,
                              SYS_futex,
                              SYS_poll,
                              SYS_ppoll,
                              SYS_clock_gettime,
                              SYS_gettimeofday,
                              SYS_time,
                              SYS_clock_nanosleep,
                              SYS_nanosleep,
                              SYS_sched_yield,
                              SYS_sched_getaffinity,
                              SYS_close,
                              SYS_sendto,
                              SYS_writev,
                              SYS_munmap,
                              SYS_madvise,
                              SYS_mremap,
                              SYS_brk,
                              SYS_getrandom,
                              SYS_rt_sigprocmask,
                              SYS_rt_sigreturn,
                              SYS_rt_sigaction,
                              SYS_sigaltstack,
                              SYS_restart_syscall,
                              SYS_gettid,
                              SYS_getpid,
                              SYS_exit,
                              SYS_exit_group});
  add(rules,
      {not_executable(SYS_mmap),
       not_executable(SYS_mprotect),
       // A descriptor's own state, not a path's.
       {.call = SYS_newfstatat, .argument = 3, .choices = {{AT_EMPTY_PATH, AT_EMPTY_PATH}}},
       {.call = SYS_statx, .argument = 2, .choices = {{AT_EMPTY_PATH, AT_EMPTY_PATH}}},
       {.call = SYS_fstat},
       // Threads of this process, and no other process.
       {.call = SYS_tgkill, .argument = 0, .choices = {{static_cast<std::uint32_t>(::getpid())}}}});
  for (const int call : {SYS_open, SYS_openat, SYS_openat2, SYS_creat}) {
    rules.push_back({.call = call, .refusal = EACCES});
  }
  return rules;
}

// Sockets to others in this machine, and descriptors that come from them.
Rules for_sockets() {
  auto rules = unconditional({SYS_connect, SYS_sendmsg, SYS_recvmsg, SYS_recvfrom, SYS_getsockopt,
                              SYS_setsockopt, SYS_shutdown, SYS_eventfd2, SYS_pread64, SYS_pwrite64,
                              SYS_lseek, SYS_readlink, SYS_fallocate});
  CallRule control{.call = SYS_fcntl, .argument = 1};
  for (const std::uint32_t command :
       {F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS}) {
    control.choices.push_back({command});
  }
  add(rules, {unix_only(SYS_socket), unix_only(SYS_socketpair), control});
  return rules;
}

// Making the next machine after a reset, and devices that are plugged: memory, threads.
Rules for_machines() {
  constexpr std::uint32_t thread_flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
                                         CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
                                         CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  auto rules = unconditional({SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl, SYS_epoll_create1,
                              SYS_signalfd4, SYS_memfd_create, SYS_ftruncate, SYS_sendfile,
                              SYS_mbind, SYS_set_robust_list, SYS_rseq});
  add(rules, {{.call = SYS_clone, .argument = 0, .choices = {{thread_flags}}},
              // Its flags are in memory, where no filter sees them; glibc then takes clone.
              {.call = SYS_clone3, .refusal = ENOSYS},
              {.call = SYS_prctl, .argument = 0, .choices = {{PR_SET_NAME}}},
              // More filters, which can only forbid more.
              {.call = SYS_seccomp, .argument = 0, .choices = {{SECCOMP_SET_MODE_FILTER}}}});
  return rules;
}

// Consoles and the control socket: clients come, descriptors are written to.
Rules for_clients() {
  return unconditional({SYS_accept4, SYS_getsockname, SYS_getpeername, SYS_pwritev, SYS_readv,
                        SYS_preadv, SYS_fsync, SYS_fdatasync});
}

// Newer C libraries set a terminal's modes with these; their header and <termios.h> exclude each
// other.
constexpr std::uint32_t tcgets2 = 0x802c'542a, tcsets2 = 0x402c'542b, tcsetsw2 = 0x402c'542c;

Rules for_main(bool removes_files, bool passthrough) {
  // KVM's requests, and the terminal's modes: they are put back at the end.
  CallRule control{.call = SYS_ioctl,
                   .argument = 1,
                   .choices = {{KvmRequests::value, KvmRequests::mask},
                               {TCGETS},
                               {TCSETS},
                               {TCSETSW},
                               {tcgets2},
                               {tcsets2},
                               {tcsetsw2},
                               {FIONREAD},
                               {FIONBIO}}};
  if (passthrough) control.choices.push_back({vfio::Requests::value, vfio::Requests::mask});
  Rules rules{control};
  add(rules, for_every_thread());
  add(rules, for_sockets());
  add(rules, for_machines());
  add(rules, for_clients());
  for (const int call : {SYS_unlink, SYS_unlinkat}) {
    rules.push_back({.call = call, .refusal = removes_files ? 0 : EPERM});
  }
  return rules;
}

}  // namespace

std::vector<CallRule> rules_of(ThreadKind kind, bool removes_files, bool passthrough) {
  if (kind == ThreadKind::main) return for_main(removes_files, passthrough);
  const bool vcpu = kind == ThreadKind::vcpu;
  auto allowed = vcpu ? requests_of_vcpus() : requests_of_devices();
  if (vcpu && passthrough) {
    for (const auto request : requests_of_bars()) allowed.push_back(request);
    for (const auto request : vfio::requests_of_functions()) allowed.push_back(request);
  }
  Rules rules{requests(allowed)};
  // A function's registers, where they are not mapped.
  if (vcpu && passthrough) add(rules, unconditional({SYS_pread64, SYS_pwrite64}));
  add(rules, for_every_thread());
  if (!vcpu) add(rules, for_sockets());
  return rules;
}

}  // namespace millrace::vmm

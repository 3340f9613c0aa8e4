// The sandbox, tried for real in children of this process, some of which it kills.
#include "vmm/sandbox.hpp"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "base/fd.hpp"
#include "vfio/calls.hpp"
#include "vmm/kvm_calls.hpp"
#include "vmm/landlock.hpp"

namespace millrace::vmm {

namespace {

using Act = std::function<long()>;
constexpr int killed = -SIGSYS, not_set_up = 120;
constexpr std::array kinds{ThreadKind::main, ThreadKind::vcpu, ThreadKind::back_end};

// What becomes of a child: 0 where the last call succeeded, its errno, or `killed`.
int in_child(const Act& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) ::_exit(not_set_up);
    ::_exit(act() < 0 ? errno : 0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

int behind(ThreadKind kind, const Act& act) {
  return in_child([&] {
    if (!confine_thread(kind)) ::_exit(not_set_up);
    return act();
  });
}

struct Try {
  const char* name;
  Act act;
};

const std::vector<Try> forbidden{
    {"execve", [] { return ::syscall(SYS_execve, "/bin/true", nullptr, nullptr); }},
    {"execveat", [] { return ::syscall(SYS_execveat, 0, "", nullptr, nullptr, AT_EMPTY_PATH); }},
    {"fork", [] { return ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }},
    {"namespace", [] { return ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0); }},
    {"ptrace", [] { return ::syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0); }},
    {"peek", [] { return ::syscall(SYS_process_vm_readv, 1, nullptr, 0, nullptr, 0, 0); }},
    {"inet", [] { return ::syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); }},
    {"netlink", [] { return ::syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0); }},
    {"mmap",
     [] {
       return ::syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0);
     }},
    {"mprotect", [] { return ::syscall(SYS_mprotect, nullptr, 0, PROT_EXEC); }},
    {"tgkill", [] { return ::syscall(SYS_tgkill, 1, 1, 0); }},
    {"kill", [] { return ::syscall(SYS_kill, 1, 0); }},
    {"io_uring", [] { return ::syscall(SYS_io_uring_setup, 1, nullptr); }},
    {"rename", [] { return ::syscall(SYS_rename, "/no/such", "/no/such/other"); }},
    {"mkdir", [] { return ::syscall(SYS_mkdir, "/no/such/folder", 0); }},
    {"setuid", [] { return ::syscall(SYS_setuid, ::getuid()); }},
    {"type into the terminal", [] { return ::syscall(SYS_ioctl, -1, TIOCSTI, "x"); }},
    {"stat", [] { return ::syscall(SYS_newfstatat, AT_FDCWD, "/", nullptr, 0); }},
    {"a call of the x32 kind", [] { return ::syscall(SYS_getpid | 0x4000'0000); }},
};

TEST(Sandbox, AForbiddenCallEndsTheProcess) {
  for (const auto kind : kinds) {
    for (const auto& attempt : forbidden) {
      EXPECT_EQ(behind(kind, attempt.act), killed)
          << attempt.name << ", kind " << static_cast<int>(kind);
    }
  }
}

TEST(Sandbox, OpeningAFileIsRefused) {
  for (const auto kind : kinds) {
    EXPECT_EQ(behind(kind, [] { return ::syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY); }),
              EACCES);
    EXPECT_EQ(behind(kind, [] { return ::syscall(SYS_open, "/dev/null", O_RDONLY); }), EACCES);
    EXPECT_EQ(behind(kind, [] { return ::syscall(SYS_creat, "/dev/null", 0); }), EACCES);
  }
}

TEST(Sandbox, EachKindOfThreadMayDoItsOwnWork) {
  const auto unix_socket = [] { return ::syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0); };
  EXPECT_EQ(behind(ThreadKind::main, unix_socket), 0);
  EXPECT_EQ(behind(ThreadKind::back_end, unix_socket), 0);
  EXPECT_EQ(behind(ThreadKind::vcpu, unix_socket), killed);
  const auto memory = [] { return ::syscall(SYS_memfd_create, "x", 0); };
  EXPECT_EQ(behind(ThreadKind::main, memory), 0);
  EXPECT_EQ(behind(ThreadKind::back_end, memory), killed);
  EXPECT_EQ(behind(ThreadKind::vcpu, memory), killed);
  const auto request = [](std::uint32_t number) {
    return [number] { return ::syscall(SYS_ioctl, -1, number, 0); };
  };
  const auto run_guest = requests_of_vcpus().front();
  EXPECT_EQ(behind(ThreadKind::main, request(run_guest)), EBADF);
  EXPECT_EQ(behind(ThreadKind::vcpu, request(run_guest)), EBADF);
  EXPECT_EQ(behind(ThreadKind::back_end, request(run_guest)), killed);
  const auto make_guest = KvmRequests::value | 1;  // KVM_CREATE_VM
  EXPECT_EQ(behind(ThreadKind::main, request(make_guest)), EBADF);
  EXPECT_EQ(behind(ThreadKind::vcpu, request(make_guest)), killed);
  for (const auto number : requests_of_devices()) {
    for (const auto kind : kinds) EXPECT_EQ(behind(kind, request(number)), EBADF);
  }
  const auto remove = [] { return ::syscall(SYS_unlink, "/no/such"); };
  EXPECT_EQ(behind(ThreadKind::main, remove), EPERM);
  EXPECT_EQ(behind(ThreadKind::vcpu, remove), killed);
}

// Whether any of the requests would come through these rules.
bool lets_through(const std::vector<CallRule>& rules, std::uint32_t request) {
  return std::ranges::any_of(rules, [request](const CallRule& rule) {
    return rule.call == SYS_ioctl &&
           std::ranges::any_of(rule.choices, [request](const ArgumentRule& choice) {
             return (request & choice.mask) == choice.value;
           });
  });
}

TEST(Sandbox, OnlyAGuestWithFunctionsOfTheHostMayUseVfio) {
  const auto requests = vfio::requests_of_functions();
  ASSERT_FALSE(requests.empty());
  for (const auto request : requests) {
    EXPECT_EQ(request & vfio::Requests::mask, vfio::Requests::value);
    for (const auto kind : kinds) EXPECT_FALSE(lets_through(rules_of(kind), request));
    EXPECT_TRUE(lets_through(rules_of(ThreadKind::main, false, true), request));
    EXPECT_TRUE(lets_through(rules_of(ThreadKind::vcpu, false, true), request));
    EXPECT_FALSE(lets_through(rules_of(ThreadKind::back_end, false, true), request));
  }
  for (const auto request : requests_of_bars()) {
    EXPECT_FALSE(lets_through(rules_of(ThreadKind::vcpu), request));
    EXPECT_TRUE(lets_through(rules_of(ThreadKind::vcpu, false, true), request));
  }
}

// Whether whatever `part` lets through `whole` does too.
bool covers(const CallRule& whole, const CallRule& part) {
  if (whole.call != part.call || whole.refusal != part.refusal) return false;
  if (whole.choices.empty()) return true;
  return whole.argument == part.argument && !part.choices.empty() &&
         std::ranges::all_of(part.choices, [&](const ArgumentRule& choice) {
           return std::ranges::any_of(whole.choices, [&](const ArgumentRule& other) {
             return (choice.mask & other.mask) == other.mask &&
                    (choice.value & other.mask) == other.value;
           });
         });
}

TEST(Sandbox, TheMainThreadMayWhatItsThreadsMay) {
  for (const bool passthrough : {false, true}) {
    const auto main = rules_of(ThreadKind::main, false, passthrough);
    for (const auto kind : {ThreadKind::vcpu, ThreadKind::back_end}) {
      const auto rules = rules_of(kind, false, passthrough);
      EXPECT_GT(rules.size(), 20u);
      for (const auto& rule : rules) {
        EXPECT_TRUE(std::ranges::any_of(main, [&](const auto& own) { return covers(own, rule); }))
            << "call " << rule.call;
      }
    }
    for (const auto kind : kinds) {
      auto rules = rules_of(kind, false, passthrough);
      std::ranges::sort(rules, {}, &CallRule::call);
      EXPECT_EQ(std::ranges::adjacent_find(rules, {}, &CallRule::call), rules.end())
          << "a second rule of a call is never reached";
    }
  }
}

TEST(Sandbox, ThreadsOfTheMainThreadAreNarrowedOneByOne) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer's own threads and maps need calls that are on no list";
#endif
  const auto threads = [](const Act& in_thread, const Act& afterwards) {
    return in_child([&] {
      if (!enter_sandbox({})) ::_exit(not_set_up);
      std::thread{[&] {
        if (!confine_thread(ThreadKind::vcpu) || in_thread() < 0) ::_exit(not_set_up);
      }}.join();
      return afterwards();
    });
  };
  const auto nothing = [] { return ::syscall(SYS_getpid); };
  const auto memory = [] { return ::syscall(SYS_memfd_create, "x", 0); };
  EXPECT_EQ(threads(nothing, memory), 0);
  EXPECT_EQ(threads(memory, nothing), killed);
}

class Landlock : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / "millrace-landlock-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    std::filesystem::create_directory(folder + "/inner");
    for (const auto* const name : {"/file", "/inner/file"}) std::ofstream{folder + name} << "x";
    const int known = in_child([] {
      const auto there = give_up_files({});
      return there && *there ? 0 : (errno = ENOSYS, -1);
    });
    if (known != 0) GTEST_SKIP() << "this kernel has no Landlock";
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  // Without the list of system calls.
  int after_giving_up(const std::vector<std::string>& folders, const Act& act) {
    return in_child([&] {
      const auto done = give_up_files(folders);
      if (!done || !*done) ::_exit(not_set_up);
      return act();
    });
  }
  std::string folder;
};

TEST_F(Landlock, NothingOpensAndNothingIsMade) {
  const auto file = folder + "/file", fresh = folder + "/fresh";
  EXPECT_EQ(after_giving_up({}, [&] { return ::open(file.c_str(), O_RDONLY); }), EACCES);
  EXPECT_EQ(after_giving_up({}, [&] { return ::open(file.c_str(), O_WRONLY); }), EACCES);
  EXPECT_EQ(after_giving_up({}, [&] { return ::open(fresh.c_str(), O_CREAT | O_WRONLY, 0600); }),
            EACCES);
  EXPECT_EQ(after_giving_up({}, [&] { return ::unlink(file.c_str()); }), EACCES);
  EXPECT_EQ(after_giving_up({}, [&] { return ::mkdir(fresh.c_str(), 0700); }), EACCES);
  EXPECT_TRUE(std::filesystem::exists(file));
}

TEST_F(Landlock, WhatIsOpenStaysUsable) {
  const base::Fd open{::open((folder + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  EXPECT_EQ(after_giving_up({}, [&] { return ::pwrite(open.get(), "y", 1, 0); }), 0);
  EXPECT_EQ(after_giving_up({}, [&] { return ::ftruncate(open.get(), 0); }), 0);
}

TEST_F(Landlock, FilesAreRemovedInTheFoldersOfSocketsOnly) {
  const auto inner = folder + "/inner", inside = inner + "/file", outside = folder + "/file";
  EXPECT_EQ(after_giving_up({inner}, [&] { return ::unlink(outside.c_str()); }), EACCES);
  EXPECT_EQ(after_giving_up({inner}, [&] { return ::open(inside.c_str(), O_RDONLY); }), EACCES);
  EXPECT_EQ(after_giving_up({inner}, [&] { return ::unlink(inside.c_str()); }), 0);
  EXPECT_FALSE(std::filesystem::exists(inside));
  EXPECT_TRUE(std::filesystem::exists(outside));
}

TEST_F(Landlock, AFolderThatIsNotThereIsSaid) {
  EXPECT_EQ(in_child([&] {
              const auto done = give_up_files(std::vector<std::string>{folder + "/absent"});
              const bool said = !done && done.error().message.find("absent") != std::string::npos;
              return said ? 0 : (errno = EINVAL, -1);
            }),
            0);
}

}  // namespace

}  // namespace millrace::vmm

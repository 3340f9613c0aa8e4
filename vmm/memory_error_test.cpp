#include "vmm/memory_error.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace millrace::vmm {

namespace {

// A process may send itself a signal as if the kernel had.
void sigbus(int code) {
  siginfo_t info{};
  info.si_signo = SIGBUS;
  info.si_code = code;
  ::syscall(SYS_rt_sigqueueinfo, ::getpid(), SIGBUS, &info);
}

TEST(MemoryError, ThatWasTouchedEndsTheGuestWithALine) {
  EXPECT_EXIT(
      {
        end_on_memory_error();
        sigbus(BUS_MCEERR_AR);
      },
      testing::ExitedWithCode(1), "hardware memory error in this guest's memory: the guest is");
}

TEST(MemoryError, ThatNobodyUsedIsToldOf) {
  EXPECT_EXIT(
      {
        end_on_memory_error();
        sigbus(BUS_MCEERR_AO);
        std::_Exit(7);
      },
      testing::ExitedWithCode(7), "not used so far");
}

TEST(MemoryError, AnyOtherSigbusEndsTheProcessAsItWould) {
  EXPECT_EXIT(
      {
        end_on_memory_error();
        sigbus(SI_QUEUE);
      },
      testing::KilledBySignal(SIGBUS), "");
}

TEST(MemoryError, OfTheKernelItself) {
  auto* const page = static_cast<char*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(page), MAP_FAILED);
  *page = 1;
  if (::madvise(page, 4096, MADV_HWPOISON) != 0) {
    ::munmap(page, 4096);
    GTEST_SKIP() << "the kernel poisons no memory for this user";
  }
  EXPECT_EXIT(
      {
        end_on_memory_error();
        *page = 2;
      },
      testing::ExitedWithCode(1), "hardware memory error");
  ::munmap(page, 4096);
}

}  // namespace

}  // namespace millrace::vmm

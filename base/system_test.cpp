// Descriptors, cores, NUMA memory and the allocation freeze: thin wraps of the system.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>

#include "base/allocation_freeze.hpp"
#include "base/cores.hpp"
#include "base/fd.hpp"
#include "base/log.hpp"
#include "base/numa.hpp"

namespace millrace::base {
namespace {

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

TEST(FdTest, ClosesWhatItOwnsOnce) {
  int number = -1;
  {
    Fd fd{::eventfd(0, 0)};
    number = fd.get();
    ASSERT_TRUE(is_open(number));
    Fd moved{std::move(fd)};
    EXPECT_EQ(moved.get(), number);
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(FdTest, AssignmentClosesTheOldOne) {
  Fd one{::eventfd(0, 0)};
  const int first = one.get();
  Fd two{::eventfd(0, 0)};
  const int second = two.get();
  one = std::move(two);
  EXPECT_FALSE(is_open(first));
  EXPECT_EQ(one.get(), second);
  EXPECT_EQ(one.release(), second);
  EXPECT_FALSE(one.valid());
  ::close(second);
}

TEST(FdTest, KindComesFromTheKernel) {
  EXPECT_EQ(kind_of(Fd{}), FdKind::other);
  EXPECT_EQ(kind_of(Fd{::eventfd(0, 0)}), FdKind::eventfd);
  EXPECT_EQ(kind_of(Fd{::memfd_create("x", 0)}), FdKind::memory);
  EXPECT_EQ(kind_of(Fd{::memfd_create("x", MFD_ALLOW_SEALING)}), FdKind::memory);
  if (const Fd huge{::memfd_create("x", MFD_HUGETLB)}) {
    EXPECT_EQ(kind_of(huge), FdKind::memory);
  }
  EXPECT_EQ(kind_of(Fd{::socket(AF_UNIX, SOCK_STREAM, 0)}), FdKind::socket);
  EXPECT_EQ(kind_of(Fd{::open("/proc/self/exe", O_RDONLY)}), FdKind::regular_file);
  EXPECT_EQ(kind_of(Fd{::open("/", O_RDONLY | O_DIRECTORY)}), FdKind::other);
  EXPECT_EQ(kind_of(Fd{::open("/dev/zero", O_RDWR)}), FdKind::other);
  EXPECT_EQ(kind_of(Fd{::epoll_create1(0)}), FdKind::other);
  EXPECT_EQ(kind_of(Fd{::timerfd_create(CLOCK_MONOTONIC, 0)}), FdKind::other);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(kind_of(Fd{ends[0]}), FdKind::other);
  EXPECT_EQ(kind_of(Fd{ends[1]}), FdKind::other);
}

TEST(FdTest, ADescriptorByPathIsNotTakenForMemory) {
  const Fd memory{::memfd_create("x", 0)};
  const auto path = "/proc/self/fd/" + std::to_string(memory.get());
  EXPECT_EQ(kind_of(Fd{::open(path.c_str(), O_PATH)}), FdKind::regular_file);
}

TEST(CoresTest, ListsCoresThatAThreadCanBePinnedTo) {
  const auto cores = usable_cores();
  ASSERT_TRUE(cores);
  ASSERT_FALSE(cores->empty());
  EXPECT_TRUE(std::is_sorted(cores->begin(), cores->end()));
  std::thread thread{[core = cores->back()] {
    ASSERT_TRUE(pin_thread(::pthread_self(), core));
    EXPECT_EQ(::sched_getcpu(), core);
    EXPECT_EQ(usable_cores()->size(), 1u);
  }};
  thread.join();
  EXPECT_FALSE(pin_thread(::pthread_self(), -1));
  EXPECT_FALSE(pin_thread(::pthread_self(), 1 << 20));
}

TEST(NumaTest, BuffersAreZeroedAlignedAndMovable) {
  const int node = node_of_core(usable_cores()->front());
  for (const int wanted : {any_node, node, 4095}) {
    auto buffer = NumaBuffer::make(5000, wanted);
    ASSERT_TRUE(buffer);
    EXPECT_EQ(buffer->size(), 8192u);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 4096, 0u);
    EXPECT_TRUE(std::all_of(buffer->data(), buffer->data() + buffer->size(),
                            [](std::byte byte) { return byte == std::byte{0}; }));
    NumaBuffer moved = *std::move(buffer);
    moved.data()[8191] = std::byte{1};
    EXPECT_EQ(moved.size(), 8192u);
  }
  EXPECT_FALSE(NumaBuffer::make(0, any_node));
  EXPECT_FALSE(NumaBuffer::make(~std::size_t{0}, any_node));
  EXPECT_EQ(node_of_core(-1), any_node);
}

void allocate_frozen() {
  const AllocationFreeze freeze;
  const auto number = std::make_unique<int>(1);
  static_cast<void>(*static_cast<volatile int*>(number.get()));
}

struct alignas(128) Wide {
  int number = 0;
};

TEST(AllocationFreezeDeathTest, AllocationIsOurOwnFault) {
  if (!AllocationFreeze::enforced()) GTEST_SKIP() << "a sanitizer brings its own operator new";
  EXPECT_DEATH(allocate_frozen(), "no allocation while AllocationFreeze");
  EXPECT_DEATH(
      {
        const AllocationFreeze freeze;
        const auto wide = std::make_unique<Wide>();
        static_cast<void>(*static_cast<volatile int*>(&wide->number));
      },
      "no allocation while AllocationFreeze");
}

TEST(AllocationFreezeTest, EndsWithItsScopeAndBindsItsThreadOnly) {
  auto before = std::make_unique<int>(1);
  {
    const AllocationFreeze outer;
    { const AllocationFreeze inner; }
    before.reset();
  }
  const auto after = std::make_unique<Wide>();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(after.get()) % alignof(Wide), 0u);
  std::thread other{[] { EXPECT_NE(std::make_unique<int>(2), nullptr); }};
  const AllocationFreeze freeze;
  other.join();
}

TEST(LogTest, WritesOneLineAtTheWantedLevel) {
  testing::internal::CaptureStderr();
  set_up_log("warning");
  spdlog::info("quiet");
  spdlog::warn("loud {}", 7);
  const auto text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("quiet"), std::string::npos);
  EXPECT_NE(text.find("warning: loud 7\n"), std::string::npos);
  set_up_log("no such level");
  EXPECT_EQ(spdlog::default_logger()->level(), spdlog::level::info);
}

}  // namespace
}  // namespace millrace::base

#include "base/mapping.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <thread>
#include <vector>

namespace millrace::base {
namespace {

constexpr std::uint64_t page = 4096;

class MappingTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { install_memory_fault_handler(); }

  static Fd make_file(std::uint64_t size, unsigned flags = 0) {
    Fd fd{::memfd_create("guest", flags)};
    EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    return fd;
  }
  static std::shared_ptr<const Mapping> map(const Fd& fd, std::uint64_t offset,
                                            std::uint64_t size) {
    auto mapping = Mapping::map(fd, offset, size);
    EXPECT_TRUE(mapping) << mapping.error().message;
    return *std::move(mapping);
  }
};

int peek(const Mapping& mapping, std::uint64_t at) {
  return static_cast<int>(*const_cast<volatile std::byte*>(mapping.data() + at));
}
void poke(const Mapping& mapping, std::uint64_t at, int value) {
  *const_cast<volatile std::byte*>(mapping.data() + at) = static_cast<std::byte>(value);
}

TEST_F(MappingTest, SharesTheFileFromAnyOffset) {
  const auto fd = make_file(4 * page);
  const auto whole = map(fd, 0, 4 * page);
  const auto part = map(fd, page + 123, page + 7);
  poke(*whole, page + 123, 0x5a);
  poke(*part, page + 6, 0xa5);
  EXPECT_EQ(peek(*part, 0), 0x5a);
  EXPECT_EQ(peek(*whole, page + 123 + page + 6), 0xa5);
  EXPECT_EQ(part->size(), page + 7);
  EXPECT_EQ(part->page_size(), page);
  EXPECT_FALSE(part->faulted());
}

TEST_F(MappingTest, RefusesWhatTheFileDoesNotHold) {
  const auto fd = make_file(2 * page);
  EXPECT_TRUE(Mapping::map(fd, page, page));
  EXPECT_FALSE(Mapping::map(fd, 0, 0));
  EXPECT_FALSE(Mapping::map(fd, 0, 2 * page + 1));
  EXPECT_FALSE(Mapping::map(fd, page + 1, page));
  EXPECT_FALSE(Mapping::map(fd, 2 * page, 1));
  EXPECT_FALSE(Mapping::map(fd, ~std::uint64_t{0}, 1));
  EXPECT_FALSE(Mapping::map(fd, 1, ~std::uint64_t{0}));
  EXPECT_FALSE(Mapping::map(fd, std::uint64_t{1} << 63, std::uint64_t{1} << 63));
}

TEST_F(MappingTest, RefusesWhatIsNoMemory) {
  EXPECT_FALSE(Mapping::map(Fd{}, 0, 1));
  EXPECT_FALSE(Mapping::map(Fd{::open("/proc/self/exe", O_RDONLY)}, 0, 1));
  EXPECT_FALSE(Mapping::map(Fd{::open("/dev/zero", O_RDWR)}, 0, page));
  EXPECT_FALSE(Mapping::map(Fd{::socket(AF_UNIX, SOCK_STREAM, 0)}, 0, 1));
}

TEST_F(MappingTest, AReadOnlyOrWriteSealedFileIsARefusalAndNoCrash) {
  const auto fd = make_file(page, MFD_ALLOW_SEALING);
  const auto path = "/proc/self/fd/" + std::to_string(fd.get());
  EXPECT_FALSE(Mapping::map(Fd{::open(path.c_str(), O_RDONLY)}, 0, page));
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_FALSE(Mapping::map(fd, 0, page));
}

TEST_F(MappingTest, TruncationIsContainedAndTheMemoryReadsAsZeros) {
  const auto fd = make_file(4 * page);
  const auto mapping = map(fd, 0, 4 * page);
  const auto other_fd = make_file(page);
  const auto other = map(other_fd, 0, page);
  poke(*mapping, 0, 1);
  poke(*mapping, 3 * page, 2);
  poke(*other, 0, 3);
  const auto before = memory_fault_count();

  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  EXPECT_EQ(peek(*mapping, 3 * page), 0);
  EXPECT_TRUE(mapping->faulted());
  EXPECT_EQ(memory_fault_count(), before + 1);
  for (std::uint64_t at = 0; at < 4 * page; at += page) EXPECT_EQ(peek(*mapping, at), 0);
  poke(*mapping, 2 * page, 9);
  EXPECT_EQ(peek(*mapping, 2 * page), 9);
  EXPECT_EQ(memory_fault_count(), before + 1);

  EXPECT_FALSE(other->faulted());
  EXPECT_EQ(peek(*other, 0), 3);
}

TEST_F(MappingTest, AWriteToLostMemoryIsContained) {
  const auto fd = make_file(2 * page);
  const auto mapping = map(fd, page, page);
  ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(page)), 0);
  poke(*mapping, 17, 4);
  EXPECT_TRUE(mapping->faulted());
  EXPECT_EQ(peek(*mapping, 17), 4);
}

TEST_F(MappingTest, EveryMappingOfALostFileFaultsByItself) {
  const auto fd = make_file(2 * page);
  const auto one = map(fd, 0, page);
  const auto two = map(fd, page, page);
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  EXPECT_EQ(peek(*two, 0), 0);
  EXPECT_TRUE(two->faulted());
  EXPECT_FALSE(one->faulted());
  EXPECT_EQ(peek(*one, 0), 0);
  EXPECT_TRUE(one->faulted());
}

TEST_F(MappingTest, ThreadsThatFaultTogetherAllGoOn) {
  for (int round = 0; round < 50; ++round) {
    const auto fd = make_file(64 * page);
    const auto mapping = map(fd, 0, 64 * page);
    ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
    const auto before = memory_fault_count();
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&mapping, t] {
        for (std::uint64_t at = t; at < 64 * page; at += page) EXPECT_EQ(peek(*mapping, at), 0);
      });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(memory_fault_count(), before + 1);
    EXPECT_TRUE(mapping->faulted());
  }
}

TEST_F(MappingTest, AHugePageThatThePoolLacksIsContained) {
  const std::uint64_t huge = 2u << 20;
  Fd fd{::memfd_create("huge", MFD_HUGETLB | (21u << MFD_HUGE_SHIFT))};
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(2 * huge)) != 0) {
    GTEST_SKIP() << "this kernel has no huge pages of 2 MiB";
  }
  const auto mapping = map(fd, huge + 4096, 8192);
  EXPECT_EQ(mapping->page_size(), huge);
  EXPECT_EQ(peek(*mapping, 8191), 0);
  poke(*mapping, 5, 6);
  EXPECT_EQ(peek(*mapping, 5), 6);
}

TEST_F(MappingTest, SlotsAreUsedAgain) {
  const auto fd = make_file(page);
  for (int i = 0; i < 40'000; ++i) ASSERT_TRUE(Mapping::map(fd, 0, page));
  std::vector<std::shared_ptr<const Mapping>> held;
  held.reserve(2000);
  for (int i = 0; i < 2000; ++i) held.push_back(map(fd, 0, page));
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  EXPECT_EQ(peek(*held.back(), 0), 0);
  EXPECT_TRUE(held.back()->faulted());
  EXPECT_FALSE(held.front()->faulted());
}

TEST_F(MappingTest, AnonymousMemoryIsZeroedAndWritable) {
  const auto mapping = Mapping::anonymous(page + 1);
  ASSERT_TRUE(mapping);
  EXPECT_EQ((*mapping)->size(), page + 1);
  EXPECT_EQ(peek(**mapping, page), 0);
  poke(**mapping, page, 1);
  EXPECT_FALSE((*mapping)->faulted());
  EXPECT_FALSE(Mapping::anonymous(0));
}

using MappingDeathTest = MappingTest;

TEST_F(MappingDeathTest, AFaultInMemoryOfOurOwnEndsTheProcess) {
  EXPECT_DEATH(
      {
        const auto fd = make_file(page);
        void* memory = ::mmap(nullptr, page, PROT_READ, MAP_SHARED, fd.get(), 0);
        [[maybe_unused]] const int cut = ::ftruncate(fd.get(), 0);
        static_cast<void>(*static_cast<volatile char*>(memory));
      },
      "our own fault: SIGBUS");
}

TEST_F(MappingDeathTest, ASignalThatSomebodySentEndsTheProcess) {
  EXPECT_DEATH(::raise(SIGBUS), "our own fault: SIGBUS");
}

}  // namespace
}  // namespace millrace::base

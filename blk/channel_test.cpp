// UringChannel over a real io_uring and real files, driven by the test's own thread.
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <list>

#include "blk/testing/channel_bench.hpp"
#include "blk/testing/scratch_file.hpp"
#include "blk/uring.hpp"
#include "blk/uring_channel.hpp"

namespace millrace::blk {
namespace {

using testing::patterned;
using testing::ScratchFile;
using Bytes = std::vector<std::byte>;

using testing::ChannelBench;
using testing::config_for;
using testing::Memory;
using testing::target_of;

// Every set of ring flags that a kernel may leave us, with and without registered files.
class EveryRing : public ::testing::TestWithParam<std::tuple<int, bool>> {
 protected:
  static UringOptions options() {
    UringOptions out;
    out.defer_taskrun = std::get<0>(GetParam()) == 2;
    out.coop_taskrun = std::get<0>(GetParam()) >= 1;
    out.registered_files = std::get<1>(GetParam());
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(Flags, EveryRing,
                         ::testing::Combine(::testing::Values(0, 1, 2), ::testing::Bool()));

TEST_P(EveryRing, MovesEveryKindOfOperation) {
  ScratchFile file{1 << 20};
  const auto image = open_image(config_for(file, DirectMode::automatic));
  ASSERT_TRUE(image) << image.error().message;
  ChannelBench bench{options(), target_of(*image)};
  EXPECT_EQ(bench.had.registered_files, options().registered_files);
  const Memory memory{1 << 20};
  const Bytes data = patterned(0, 65536, 1);
  memory.put(0, data);

  Io& write =
      bench.add(Operation::write, 8192, 65536,
                {{memory.at(0), 4096}, {memory.at(4096), 20480}, {memory.at(24576), 40960}});
  bench.run();
  EXPECT_EQ(write.result, 0);
  EXPECT_EQ(write.transferred, 65536u);
  EXPECT_EQ(file.read(8192, 65536), data);
  Io& flush = bench.add(Operation::flush, 0, 0);
  Io& read = bench.add(Operation::read, 8192, 65536,
                       {{memory.at(131072), 512}, {memory.at(200704), 65024}});
  bench.run();
  EXPECT_EQ(flush.result, 0);
  EXPECT_EQ(read.result, 0);
  EXPECT_EQ(memory.get(131072, 512), Bytes(data.begin(), data.begin() + 512));
  EXPECT_EQ(memory.get(200704, 65024), Bytes(data.begin() + 512, data.end()));

  Io& zero = bench.add(Operation::write_zeroes, 8192, 4096);
  Io& discard = bench.add(Operation::discard, 16384, 8192);
  Io& unmap = bench.add(Operation::write_zeroes, 40960, 512);
  unmap.unmap = true;
  bench.run();
  EXPECT_EQ(zero.result, 0);
  EXPECT_EQ(discard.result, 0);
  EXPECT_EQ(unmap.result, 0);
  EXPECT_EQ(file.read(8192, 4096), Bytes(4096));
  EXPECT_EQ(file.read(16384, 8192), Bytes(8192));
  EXPECT_EQ(file.read(40960, 512), Bytes(512));
  EXPECT_EQ(file.read(41472, 512), patterned(41472 - 8192, 512, 1));
  EXPECT_EQ(file.bytes(), 1u << 20);
}

TEST_P(EveryRing, TakesMoreThanTheRingHolds) {
  ScratchFile file{1 << 20};
  UringOptions small = options();
  small.entries = 4;
  small.completions = 8;
  ChannelBench bench{small, {file.fd(), -1}};
  const Memory memory{1 << 20};
  for (unsigned i = 0; i < 256; ++i) {
    memory.put(i * 4096, patterned(i * 4096, 4096, 2));
    bench.add_data(Operation::write, i * 4096, memory.at(i * 4096), 4096);
  }
  bench.run();
  EXPECT_EQ(file.read(0, 1 << 20), patterned(0, 1 << 20, 2));
}

TEST(UringChannel, BouncesMisalignedMemoryAndBuffersMisalignedRanges) {
  ScratchFile file{1 << 20};
  const auto image = open_image(config_for(file, DirectMode::automatic));
  ASSERT_TRUE(image) << image.error().message;
  if (!image->direct.valid()) GTEST_SKIP() << "no O_DIRECT here";
  // As a disk with blocks of 4096 bytes has it.
  UringTarget target = target_of(*image);
  target.memory_alignment = std::max(target.memory_alignment, 512u);
  target.offset_alignment = 4096;
  ChannelBench bench{{}, target};
  const Memory memory{2 << 20};

  // Larger than a bounce buffer, and at an odd address.
  const Bytes data = patterned(0, 3 * limits::bounce_bytes + 4096, 3);
  memory.put(7, data);
  EXPECT_EQ(bench.run_one(Operation::write, 4096, memory.at(7), data.size()), 0);
  EXPECT_EQ(bench.statistics.bounced.get(), 4u);
  EXPECT_EQ(bench.statistics.buffered.get(), 0u);
  EXPECT_EQ(file.read(4096, data.size()), data);
  EXPECT_EQ(bench.run_one(Operation::read, 4096, memory.at((1 << 20) + 3), data.size()), 0);
  EXPECT_EQ(bench.statistics.bounced.get(), 8u);
  EXPECT_EQ(memory.get((1 << 20) + 3, data.size()), data);

  // 512 bytes of a 4096 byte block: past O_DIRECT, and the rest of the block stays.
  memory.put(0, patterned(0, 512, 4));
  EXPECT_EQ(bench.run_one(Operation::write, 4608, memory.at(0), 512), 0);
  EXPECT_EQ(bench.statistics.buffered.get(), 1u);
  EXPECT_EQ(file.read(4608, 512), patterned(0, 512, 4));
  EXPECT_EQ(file.read(4096, 512), Bytes(data.begin(), data.begin() + 512));
  // And what went there is seen through O_DIRECT.
  EXPECT_EQ(bench.run_one(Operation::read, 4096, memory.at(8192), 4096), 0);
  EXPECT_EQ(memory.get(8704, 512), patterned(0, 512, 4));
}

TEST(UringChannel, WaitsForBounceBuffers) {
  ScratchFile file{4 << 20};
  const auto image = open_image(config_for(file, DirectMode::automatic));
  ASSERT_TRUE(image) << image.error().message;
  if (!image->direct.valid()) GTEST_SKIP() << "no O_DIRECT here";
  UringTarget target = target_of(*image);
  target.memory_alignment = 512;
  ChannelBench bench{{}, target};
  const Memory memory{5 << 20};
  for (unsigned i = 0; i < 16 * limits::bounce_buffers; ++i) {
    memory.put(1 + i * 8193, patterned(i * 8192, 8192, 5));
    bench.add_data(Operation::write, i * 8192, memory.at(1 + i * 8193), 8192);
  }
  bench.run();
  EXPECT_EQ(file.read(0, 16 * limits::bounce_buffers * 8192),
            patterned(0, 16 * limits::bounce_buffers * 8192, 5));
}

TEST(UringChannel, GoesPastODirectWhereTheFileSystemWantsMoreThanItSaid) {
  ScratchFile file{1 << 20};
  const auto image = open_image(config_for(file, DirectMode::automatic));
  ASSERT_TRUE(image) << image.error().message;
  if (!image->direct.valid()) GTEST_SKIP() << "no O_DIRECT here";
  UringTarget target = target_of(*image);
  target.memory_alignment = target.offset_alignment = 1;  // a lie
  ChannelBench bench{{}, target};
  const Memory memory{65536};
  memory.put(1, patterned(0, 1000, 6));
  EXPECT_EQ(bench.run_one(Operation::write, 3, memory.at(1), 1000), 0);
  EXPECT_EQ(file.read(3, 1000), patterned(0, 1000, 6));
}

TEST(UringChannel, WritesZeroesOutWhereTheFileSystemCannotZero) {
  // A memfd can punch holes but has no FALLOC_FL_ZERO_RANGE.
  const base::Fd file{::memfd_create("zeroes", MFD_CLOEXEC)};
  const std::size_t bytes = 4 << 20;
  const Bytes data = patterned(0, bytes, 7);
  ASSERT_EQ(::pwrite(file.get(), data.data(), bytes, 0), static_cast<ssize_t>(bytes));
  ChannelBench bench{{}, {file.get(), -1}};
  Io& zero = bench.add(Operation::write_zeroes, 512, (3 << 20) + 1024);
  bench.run();
  EXPECT_EQ(zero.result, 0);
  EXPECT_EQ(zero.transferred, (3u << 20) + 1024);
  Bytes now(bytes);
  ASSERT_EQ(::pread(file.get(), now.data(), bytes, 0), static_cast<ssize_t>(bytes));
  Bytes expected = data;
  std::fill_n(expected.begin() + 512, (3 << 20) + 1024, std::byte{0});
  EXPECT_EQ(now, expected);
}

TEST(UringChannel, DiscardIsAHint) {
  // A file system that cannot punch holes; that is no error of a discard.
  const base::Fd file{::open("/proc/self/comm", O_RDWR | O_CLOEXEC)};
  ASSERT_TRUE(file.valid());
  ChannelBench bench{{}, {file.get(), -1}};
  Io& discard = bench.add(Operation::discard, 0, 4096);
  bench.run();
  EXPECT_EQ(discard.result, 0);
}

TEST(UringChannel, SaysThatTheDiskIsFull) {
  const base::Fd full{::open("/dev/full", O_RDWR | O_CLOEXEC)};
  ASSERT_TRUE(full.valid());
  ChannelBench bench{{}, {full.get(), -1}};
  const Memory memory{8192};
  Io& write = bench.add_data(Operation::write, 0, memory.at(0), 4096);
  bench.run();
  EXPECT_EQ(write.result, -ENOSPC);
  EXPECT_EQ(write.transferred, 0u);
}

TEST(UringChannel, SaysThatAFileWasCutShort) {
  ScratchFile file{65536};
  file.write(0, patterned(0, 65536, 8));
  ChannelBench bench{{}, {file.fd(), -1}};
  file.resize(8192 + 1024);
  const Memory memory{65536};
  Io& read = bench.add(Operation::read, 8192, 8192, {{memory.at(0), 512}, {memory.at(4096), 7680}});
  Io& past = bench.add_data(Operation::read, 32768, memory.at(32768), 4096);
  bench.run();
  EXPECT_EQ(read.result, -EIO);
  EXPECT_EQ(read.transferred, 1024u);
  EXPECT_EQ(memory.get(0, 512), patterned(8192, 512, 8));
  EXPECT_EQ(memory.get(4096, 512), patterned(8704, 512, 8));
  EXPECT_EQ(past.result, -EIO);
  EXPECT_EQ(past.transferred, 0u);
}

TEST(UringChannel, GoesOnAfterShortTransfers) {
  // A pipe gives what it has: every read is short. It holds its data in pieces of our choosing.
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const base::Fd reader{ends[0]}, writer{ends[1]};
  ChannelBench bench{{}, {reader.get(), -1}};
  const Memory memory{65536};
  const Bytes data = patterned(0, 8192, 9);
  Io& read = bench.add(Operation::read, 0, 8192, {{memory.at(0), 4096}, {memory.at(8192), 4096}});
  std::size_t sent = 0;
  bench.run([&](unsigned round) {
    if (round % 64 != 0 || sent == data.size()) return;
    const std::size_t piece = std::min<std::size_t>(1000, data.size() - sent);
    ASSERT_EQ(::write(writer.get(), data.data() + sent, piece), static_cast<ssize_t>(piece));
    sent += piece;
  });
  EXPECT_EQ(read.result, 0);
  EXPECT_EQ(read.transferred, 8192u);
  EXPECT_EQ(memory.get(0, 4096), Bytes(data.begin(), data.begin() + 4096));
  EXPECT_EQ(memory.get(8192, 4096), Bytes(data.begin() + 4096, data.end()));
  // The vectors are as they were given.
  EXPECT_EQ(read.vectors[0].iov_base, memory.at(0));
  EXPECT_EQ(read.vectors[1].iov_base, memory.at(8192));
  EXPECT_EQ(read.vectors[1].iov_len, 4096u);
}

TEST(UringChannel, ReportsMemoryThatIsNotThere) {
  ScratchFile file{65536};
  file.write(0, patterned(0, 4096, 11));
  ChannelBench bench{{}, {file.fd(), -1}};
  void* const hole = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  EXPECT_EQ(bench.run_one(Operation::read, 0, static_cast<std::byte*>(hole), 4096), -EFAULT);
  ::munmap(hole, 4096);
}

TEST(UringChannel, LengthZeroIsDoneAtOnce) {
  ScratchFile file{65536};
  ChannelBench bench{{}, {file.fd(), -1}};
  const Io& read = bench.add(Operation::read, 0, 0);
  const Io& zero = bench.add(Operation::write_zeroes, 0, 0);
  bench.run();
  EXPECT_EQ(read.result, 0);
  EXPECT_EQ(zero.result, 0);
}

TEST(Uring, SharesRegisteredFilesAmongQueues) {
  auto reactor = base::Reactor::make({});
  ASSERT_TRUE(reactor);
  UringOptions options;
  auto ring = Uring::make(options);
  ASSERT_TRUE(ring);
  (*ring)->attached(**reactor);
  ScratchFile one{4096}, two{4096};
  const UringFile first = (*ring)->add_file(one.fd()), again = (*ring)->add_file(one.fd());
  const UringFile other = (*ring)->add_file(two.fd());
  EXPECT_EQ(first.slot, again.slot);
  EXPECT_NE(first.slot, other.slot);
  (*ring)->remove_file(first);
  (*ring)->remove_file(again);
  (*ring)->remove_file(other);
  EXPECT_EQ((*ring)->add_file(two.fd()).slot, first.slot);
  (*ring)->detached(**reactor);
}

}  // namespace
}  // namespace millrace::blk

// Guest memory as registered buffers: what is found in them, what is moved through them, when they
// go, and what they do to a page that was taken away.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "blk/disk.hpp"
#include "blk/file_backend.hpp"
#include "blk/pinner.hpp"
#include "blk/testing/channel_bench.hpp"
#include "blk/testing/guest.hpp"
#include "blk/testing/scratch_file.hpp"

namespace millrace::blk {
namespace {

using testing::Bytes;
using testing::ChannelBench;
using testing::Guest;
using ::testing::HasSubstr;
using testing::Host;
using testing::patterned;
using testing::ScratchFile;
using virtio::wire::BlkStatus;

constexpr std::uint64_t page = 4096;

// A guest's memory of one region, over a memfd as a front-end sends it.
struct Memory {
  explicit Memory(std::uint64_t size, std::uint64_t guest_address = 0)
      : file{::memfd_create("pinned", MFD_CLOEXEC)} {
    EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(size)), 0);
    mapping = *base::Mapping::map(file, 0, size);
    snapshot = *virtio::GuestMemory::build({{guest_address, size, 0x1000'0000, mapping}});
  }
  [[nodiscard]] std::byte* at(std::uint64_t offset) const { return mapping->data() + offset; }
  void put(std::uint64_t offset, const Bytes& data) const {
    std::copy(data.begin(), data.end(), at(offset));
  }
  [[nodiscard]] Bytes get(std::uint64_t offset, std::size_t bytes) const {
    return Bytes(at(offset), at(offset) + bytes);
  }
  base::Fd file;
  std::shared_ptr<const base::Mapping> mapping;
  std::shared_ptr<const virtio::GuestMemory> snapshot;
};

// A ring of a reactor that does not run: it is polled here.
struct AttachedRing {
  AttachedRing() {
    UringOptions options;
    reactor = *base::Reactor::make({});
    ring = *Uring::make(options);
    ring->attached(*reactor);
  }
  ~AttachedRing() { ring->detached(*reactor); }
  AttachedRing(const AttachedRing&) = delete;
  AttachedRing& operator=(const AttachedRing&) = delete;
  Uring* operator->() const { return ring.get(); }

  // Prepares a write of the first page of `from`, through that buffer.
  void prepare(Io& io, const ScratchFile& file, const Memory& from, int buffer) {
    io.home = &home;
    part = {from.at(0), page};
    EXPECT_TRUE(ring->write(io, {file.fd(), -1}, {&part, 1}, buffer));
  }
  // Waits for it; what the kernel answers.
  int result_of(const Io& io) {
    while (home.empty()) ring->poll();
    EXPECT_EQ(home.pop(), &io);
    return io.result;
  }
  int write(const ScratchFile& file, const Memory& from, int buffer) {
    Io io;
    prepare(io, file, from, buffer);
    return result_of(io);
  }

  std::unique_ptr<base::Reactor> reactor;
  std::unique_ptr<Uring> ring;
  IoList home;
  iovec part{};
};

// A ring that can have registered buffers; the tests that need one skip where it cannot.
class Pinned : public ::testing::Test {
 protected:
  void SetUp() override {
    UringOptions options;
    ASSERT_TRUE(Uring::make(options));
    if (!options.clone_buffers) GTEST_SKIP() << "this kernel does not clone registered buffers";
  }
  std::unique_ptr<PinnedMemory> pin(const Memory& memory, std::uint64_t slot_bytes) {
    auto out = std::make_unique<PinnedMemory>(memory.snapshot, board_);
    out->pin(slot_bytes);
    EXPECT_TRUE(out->ready()) << out->why();
    return out;
  }
  PinBoard board_;
};

TEST(PinBoard, KnowsPagesByTheirFile) {
  const Memory memory{1 << 20, 0x4000'0000};
  // Another device's view of the same file: other addresses, only a part.
  const auto second = *base::Mapping::map(memory.file, 0x8'0000, 0x8'0000);
  const auto view = *virtio::GuestMemory::build({{0, 0x8'0000, 0x2000'0000, second}});
  const Memory other{1 << 20};
  PinBoard board;
  EXPECT_FALSE(board.holds(*memory.snapshot, 0x4000'0000, page));
  board.add(*view);
  EXPECT_TRUE(board.holds(*memory.snapshot, 0x4008'0000, 1));
  EXPECT_TRUE(board.holds(*memory.snapshot, 0x400f'ffff, 1));
  EXPECT_TRUE(board.holds(*memory.snapshot, 0x4007'f000, page + 1));
  EXPECT_FALSE(board.holds(*memory.snapshot, 0x4007'f000, page));
  EXPECT_FALSE(board.holds(*memory.snapshot, 0x4010'0000, page));
  EXPECT_TRUE(board.holds(*memory.snapshot, 0, ~std::uint64_t{0}));
  EXPECT_FALSE(board.holds(*other.snapshot, 0x8'0000, page));
  board.add(*view);
  board.remove(*view);
  EXPECT_TRUE(board.holds(*view, 0, 1));
  board.remove(*view);
  EXPECT_FALSE(board.holds(*view, 0, 1));
}

TEST_F(Pinned, FindsTheBufferThatAllOfATransferLiesIn) {
  const Memory memory{1 << 20};
  const auto pinned = pin(memory, 64 << 10);
  EXPECT_EQ(pinned->slots(), 16u);
  EXPECT_EQ(pinned->bytes(), 1u << 20);
  std::uint32_t last = 0;
  const auto slot = [&](std::vector<iovec> vectors) { return pinned->slot_of(vectors, last); };
  EXPECT_EQ(slot({{memory.at(0), 65536}}), 0);
  EXPECT_EQ(slot({{memory.at(65536), 1}}), 1);
  EXPECT_EQ(slot({{memory.at(1048575), 1}}), 15);
  EXPECT_EQ(slot({{memory.at(131072), 512}, {memory.at(196607), 1}}), 2);
  EXPECT_EQ(slot({{memory.at(65535), 2}}), -1);
  EXPECT_EQ(slot({{memory.at(131072), 512}, {memory.at(65536), 512}}), -1);
  EXPECT_EQ(slot({{memory.at(131072), 512}, {memory.at(196608), 512}}), -1);
  EXPECT_EQ(slot({{memory.at(1048576), 1}}), -1);
  EXPECT_EQ(slot({{memory.at(0) - 1, 1}}), -1);
  EXPECT_EQ(slot({{memory.at(512), ~std::size_t{0}}}), -1);
  EXPECT_EQ(slot({}), -1);
}

TEST_F(Pinned, IsOnTheBoardAsLongAsItIsPinned) {
  const Memory memory{1 << 20};
  auto pinned = pin(memory, 1 << 20);
  EXPECT_TRUE(board_.holds(*memory.snapshot, 0, page));
  pinned.reset();
  EXPECT_FALSE(board_.holds(*memory.snapshot, 0, page));
}

TEST_F(Pinned, LeavesTheBoardWhereItCannotBePinned) {
  Memory memory{1 << 20};
  ASSERT_EQ(::ftruncate(memory.file.get(), 0), 0);  // the front-end took the pages away
  PinnedMemory pinned{memory.snapshot, board_};
  EXPECT_TRUE(board_.holds(*memory.snapshot, 0, page));
  pinned.pin();
  EXPECT_EQ(pinned.state(), PinnedMemory::State::failed);
  EXPECT_THAT(pinned.why(), HasSubstr("cannot pin guest memory: "));
  EXPECT_FALSE(board_.holds(*memory.snapshot, 0, page));
}

TEST_F(Pinned, MovesDataThroughRegisteredBuffers) {
  ScratchFile file{1 << 20};
  const auto image = open_image(testing::config_for(file, DirectMode::automatic));
  ASSERT_TRUE(image) << image.error().message;
  for (const bool vectored : {true, false}) {
    UringOptions options;
    options.vectored_buffers = vectored;
    const Memory memory{1 << 20};
    const auto pinned = pin(memory, 256 << 10);
    ChannelBench bench{options, testing::target_of(*image)};
    bench.pins = pinned.get();
    const Bytes data = patterned(0, 65536, vectored);
    memory.put(8192, data);
    EXPECT_EQ(bench.run_one(Operation::write, 4096, memory.at(8192), data.size()), 0);
    EXPECT_EQ(file.read(4096, data.size()), data);
    EXPECT_EQ(bench.run_one(Operation::read, 4096, memory.at(512 << 10), data.size()), 0);
    EXPECT_EQ(memory.get(512 << 10, data.size()), data);
    EXPECT_EQ(bench.statistics.pinned.get(), 2u);
    // Several pieces of one buffer, in any order; then pieces of two buffers.
    const std::uint64_t expected = bench.had.vectored_buffers ? 3 : 2;
    Io& pieces = bench.add(Operation::write, 131072, 12288,
                           {{memory.at(16384), 8192}, {memory.at(8192), 4096}});
    bench.run();
    EXPECT_EQ(pieces.result, 0);
    EXPECT_EQ(file.read(131072, 8192), Bytes(data.begin() + 8192, data.begin() + 16384));
    EXPECT_EQ(file.read(139264, 4096), Bytes(data.begin(), data.begin() + 4096));
    EXPECT_EQ(bench.statistics.pinned.get(), expected);
    Io& across = bench.add_data(Operation::read, 4096, memory.at((256 << 10) - 4096), 8192);
    bench.run();
    EXPECT_EQ(across.result, 0);
    EXPECT_EQ(memory.get((256 << 10) - 4096, 8192), Bytes(data.begin(), data.begin() + 8192));
    EXPECT_EQ(bench.statistics.pinned.get(), expected);
  }
}

TEST_F(Pinned, SeveralGuestsShareARing) {
  const ScratchFile file{1 << 20};
  AttachedRing ring;
  const Memory one{1 << 20}, two{1 << 20}, three{1 << 20};
  const auto first = pin(one, 256 << 10), second = pin(two, 512 << 10), third = pin(three, 1 << 20);
  EXPECT_EQ(ring->add_buffers(*first), 0);
  EXPECT_EQ(ring->add_buffers(*second), 4);
  EXPECT_EQ(ring->add_buffers(*first), 0);  // counted
  EXPECT_TRUE(ring->remove_buffers(*first));
  EXPECT_EQ(ring->add_buffers(*third), 6);
  EXPECT_TRUE(ring->remove_buffers(*first));
  EXPECT_TRUE(ring->remove_buffers(*third));
  EXPECT_EQ(ring->add_buffers(*third), 0);  // where the first was

  // Each number is the memory that it should be: the kernel refuses others.
  EXPECT_EQ(ring.write(file, three, 0), 4096);
  EXPECT_EQ(ring.write(file, two, 4), 4096);
  EXPECT_EQ(ring.write(file, two, 0), -EFAULT);
  EXPECT_EQ(ring.write(file, one, 1), -EFAULT);  // nobody's now
  EXPECT_TRUE(ring->remove_buffers(*second));
  EXPECT_TRUE(ring->remove_buffers(*third));
}

TEST_F(Pinned, WhatIsPreparedIsHandedOverBeforeItsBufferGoes) {
  ScratchFile file{1 << 20};
  AttachedRing ring;
  const Memory memory{1 << 20};
  const auto pinned = pin(memory, 1 << 20);
  ASSERT_EQ(ring->add_buffers(*pinned), 0);
  memory.put(0, patterned(0, 4096, 3));
  Io io;
  ring.prepare(io, file, memory, 0);
  EXPECT_TRUE(ring->remove_buffers(*pinned));
  EXPECT_EQ(ring.result_of(io), 4096);
  EXPECT_EQ(file.read(0, 4096), patterned(0, 4096, 3));
}

// Why nobody may take pages from memory that is pinned.
TEST_F(Pinned, APageThatWasTakenAwayIsNotTheGuestsAnyMore) {
  ScratchFile file{1 << 20};
  const Memory memory{1 << 20};
  const Bytes before = patterned(0, page, 1), after = patterned(0, page, 2);
  memory.put(page, before);
  const auto pinned = pin(memory, 1 << 20);
  ChannelBench bench{{}, {file.fd(), -1}};
  bench.pins = pinned.get();
  ASSERT_EQ(::madvise(memory.at(page), page, MADV_REMOVE), 0);  // as a balloon does it
  memory.put(page, after);                                      // the guest uses the page again
  EXPECT_EQ(bench.run_one(Operation::write, 0, memory.at(page), page), 0);
  EXPECT_EQ(bench.statistics.pinned.get(), 1u);
  EXPECT_EQ(file.read(0, page), before) << "the kernel looks pages up anew: pins need no board";
  EXPECT_TRUE(board_.holds(*memory.snapshot, page, page));  // so this is what keeps a balloon off
  // Without them it is right.
  bench.pins = nullptr;
  EXPECT_EQ(bench.run_one(Operation::write, 0, memory.at(page), page), 0);
  EXPECT_EQ(bench.statistics.pinned.get(), 1u);
  EXPECT_EQ(file.read(0, page), after);
}

TEST_F(Pinned, ThePinnerWaitsForWhoeverLookedBefore) {
  const Memory memory{1 << 20};
  std::atomic<bool> on_board{false};
  std::atomic<int> settled{0};
  Pinner pinner;
  pinner.before_pinning([&] {
    on_board = pinner.board().holds(*memory.snapshot, 0, page);
    ++settled;
  });
  const auto pinned = pinner.pin(memory.snapshot);
  while (pinned->state() == PinnedMemory::State::waiting) std::this_thread::yield();
  EXPECT_TRUE(pinned->ready()) << pinned->why();
  EXPECT_TRUE(on_board.load());
  EXPECT_EQ(settled.load(), 1);
}

TEST_F(Pinned, WhatIsReleasedGoesAndWhatWaitsIsAbandoned) {
  const Memory memory{1 << 20};
  const std::weak_ptr<const virtio::GuestMemory> seen = memory.snapshot;
  {
    Pinner pinner;
    auto first = pinner.pin(memory.snapshot);
    while (first->state() == PinnedMemory::State::waiting) std::this_thread::yield();
    ASSERT_TRUE(first->ready()) << first->why();
    pinner.release(std::move(first));
    while (pinner.board().holds(*memory.snapshot, 0, page)) std::this_thread::yield();
    auto second = pinner.pin(memory.snapshot);
    pinner.release(std::move(second));
  }
  EXPECT_EQ(seen.use_count(), 1);
}

// --- a whole disk ---

Config disk_config(const ScratchFile& file, PinMode pin) {
  Config out = testing::config_for(file, DirectMode::automatic);
  out.pin = pin;
  return out;
}

bool comes_to_pin(Host& host, const Device& device) {
  return host.wait([&] { return device.backend_status().pin.state == "pinned"; });
}

bool holds_some(const Host& host, const virtio::GuestMemory& memory) {
  const auto& board = host.rings->pinner().board();
  return board.holds(memory, memory.regions().front().guest_address, 1);
}

TEST_F(Pinned, ADiskPinsItsGuestsMemory) {
  Host host;
  ScratchFile file{4 << 20};
  auto device = *Device::make(disk_config(file, PinMode::on), *host.pool, *host.rings);
  EXPECT_EQ(device->backend_status().pin.state, "idle");
  std::shared_ptr<const virtio::GuestMemory> memory;
  {
    Guest guest{host, *device, false};
    guest.skew = 0;
    memory = guest.driver().memory();
    ASSERT_TRUE(comes_to_pin(host, *device));
    std::uint64_t bytes = 0;
    for (const auto& region : memory->regions()) bytes += region.size;
    EXPECT_EQ(device->backend_status().pin.bytes, bytes);
    const Bytes data = patterned(0, 65536, 4);
    EXPECT_EQ(guest.write(8, data).status, BlkStatus::ok);
    EXPECT_EQ(guest.read(8, data.size()).data, data);
    EXPECT_EQ(file.read(4096, data.size()), data);
    EXPECT_EQ(device->statistics().pinned, 2u);
    EXPECT_TRUE(holds_some(host, *memory));
  }
  EXPECT_EQ(device->backend_status().pin.state, "idle");
  EXPECT_TRUE(host.wait([&] { return !holds_some(host, *memory); }));
}

TEST_F(Pinned, ADiskFollowsItsGuestsMemory) {
  Host host{2};
  ScratchFile file{4 << 20};
  Config config = disk_config(file, PinMode::automatic);
  config.queues = 2;
  auto device = *Device::make(config, *host.pool, *host.rings);
  Guest guest{host, *device, true, 2};
  guest.skew = 0;
  ASSERT_TRUE(comes_to_pin(host, *device));
  const Bytes data = patterned(0, 4096, 5);
  EXPECT_EQ(guest.write(0, data, {}, 0).status, BlkStatus::ok);
  // Both queues share a snapshot from now on, which has a region more.
  auto regions = std::vector<virtio::Region>(guest.driver(0).memory()->regions().begin(),
                                             guest.driver(0).memory()->regions().end());
  const Memory added{1 << 20};
  regions.push_back({1ull << 40, 1 << 20, 0x1000'0000, added.mapping});
  const auto next = *virtio::GuestMemory::build(regions);
  bool swapped = false;
  guest.stop(1);  // its own driver has other memory
  device->set_memory(next, [&](base::Result<void>) { swapped = true; });
  ASSERT_TRUE(host.wait([&] { return swapped; }));
  const auto& board = host.rings->pinner().board();
  EXPECT_TRUE(board.holds(*next, 1ull << 40, 1));
  ASSERT_TRUE(comes_to_pin(host, *device));
  const auto before = device->statistics().pinned;
  EXPECT_EQ(guest.read(0, data.size(), {}, 0).data, data);
  EXPECT_EQ(device->statistics().pinned, before + 1);
}

// Each reactor's ring has its own clones: the old owner lets go of them, the new one takes them up.
TEST_F(Pinned, AQueueThatMovesHasItsBuffersWhereItIs) {
  Host host{2};
  ScratchFile file{4 << 20};
  auto device = *Device::make(disk_config(file, PinMode::on), *host.pool, *host.rings);
  std::shared_ptr<const virtio::GuestMemory> memory;
  {
    Guest guest{host, *device, false};
    guest.skew = 0;
    memory = guest.driver().memory();
    ASSERT_TRUE(comes_to_pin(host, *device));
    for (unsigned round = 1; round <= 10; ++round) {
      bool moved = false;
      const unsigned to = 1 - device->queue_status(0).reactor;
      device->move_queue(0, to, [&](base::Result<void> result) { moved = result.has_value(); });
      const Bytes data = patterned(0, 8192, round);
      EXPECT_EQ(guest.write(8 * round, data).status, BlkStatus::ok);
      ASSERT_TRUE(host.wait([&] { return moved; }));
      EXPECT_EQ(guest.read(8 * round, data.size()).data, data);
      EXPECT_EQ(device->statistics().pinned, 2 * round);
    }
  }
  EXPECT_TRUE(host.wait([&] { return !holds_some(host, *memory); }));
}

TEST(Pinning, AKernelThatCannotIsSaidOrRefused) {
  base::EventLoop loop;
  auto pool = base::ReactorPool::make(loop, {base::ReactorConfig{}});
  ASSERT_TRUE(pool);
  UringOptions less;
  less.clone_buffers = false;
  auto rings = UringPool::make(**pool, less);
  ASSERT_TRUE(rings);
  ScratchFile file{1 << 20};
  const auto refused = Device::make(disk_config(file, PinMode::on), **pool, **rings);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            "disk test: pin = \"on\": this kernel does not share registered buffers among rings: "
            "Linux 6.13 or newer does; use pin = \"auto\"");
  const auto made = Device::make(disk_config(file, PinMode::automatic), **pool, **rings);
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ((*made)->backend_status().pin.state, "off");
  EXPECT_THAT((*made)->backend_status().pin.why, HasSubstr("Linux 6.13"));
  const auto names = (*made)->backend_status().ring;
  EXPECT_THAT(names, ::testing::Not(::testing::Contains("cloned-buffers")));
  EXPECT_THAT(names, ::testing::Not(::testing::Contains("vectored-buffers")));
  bool closed = false;
  (*rings)->close([&] { closed = true; });
  while (!closed) loop.step(std::chrono::milliseconds{10});
}

// --- completions that are polled for ---

TEST(Polling, AFileWithoutSuchQueuesIsSaidOrRefused) {
  Host host;
  const base::Fd memory{::memfd_create("no-device", MFD_CLOEXEC)};  // on no device at all
  ASSERT_EQ(::ftruncate(memory.get(), 1 << 20), 0);
  Config config;
  config.name = "test";
  config.path = "/proc/self/fd/" + std::to_string(memory.get());
  config.iopoll = PollMode::on;
  const auto refused = Device::make(config, *host.pool, *host.rings);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("use iopoll = \"auto\""));
  config.iopoll = PollMode::automatic;
  const auto made = Device::make(config, *host.pool, *host.rings);
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_THAT((*made)->backend_status().ring, ::testing::Not(::testing::Contains("iopoll")));
}

TEST(Polling, GoesOnWithoutWhereTheDeviceRefuses) {
  ScratchFile file{1 << 20};
  // Without O_DIRECT no file can be polled, whatever its device.
  const base::Fd again{::open(file.path().c_str(), O_RDWR | O_CLOEXEC)};
  ChannelBench bench{{}, {file.fd(), again.get()}, true};
  const Memory memory{1 << 20};
  for (unsigned i = 0; i < 16; ++i) {
    memory.put(i * page, patterned(i * page, page, 6));
    bench.add_data(Operation::write, i * page, memory.at(i * page), page);
  }
  Io& durable = bench.add_data(Operation::write, 16 * page, memory.at(0), page);
  durable.durable = true;
  bench.add(Operation::flush, 0, 0);
  bench.run();
  EXPECT_EQ(file.read(0, 16 * page), patterned(0, 16 * page, 6));
  EXPECT_EQ(file.read(16 * page, page), patterned(0, page, 6));
  const auto polled = bench.statistics.polled.get();
  EXPECT_EQ(polled, 16u);  // all but the durable one and the flush were tried
  EXPECT_EQ(bench.run_one(Operation::read, 0, memory.at(65536), 65536), 0);
  EXPECT_EQ(memory.get(65536, 65536), patterned(0, 65536, 6));
  EXPECT_EQ(bench.statistics.polled.get(), polled);  // not tried again
}

}  // namespace
}  // namespace millrace::blk

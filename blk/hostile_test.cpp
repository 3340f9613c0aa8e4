// Requests that are wrong, backends that fail, and write modes, through a whole disk.
#include "blk/disk.hpp"
#include "blk/memory_backend.hpp"
#include "blk/testing/faulty_backend.hpp"
#include "blk/testing/guest.hpp"
#include "blk/testing/scratch_file.hpp"

namespace millrace::blk {
namespace {

using testing::Bytes;
using testing::Guest;
using testing::Host;
using testing::Layout;
using testing::patterned;
using testing::ScratchFile;
using virtio::wire::BlkStatus;

constexpr std::uint64_t disk_bytes = 1 << 20, sectors = disk_bytes / 512;

Config config_of(const ScratchFile& file) {
  Config out;
  out.name = "disk0";
  out.path = file.path();
  out.discard_segments_max = 1;
  return out;
}

class Hostile : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<Device> make(const Config& config) {
    auto made = Device::make(config, *host.pool, *host.rings);
    EXPECT_TRUE(made) << made.error().message;
    return std::move(*made);
  }
  Host host;
  ScratchFile file{disk_bytes};
};
INSTANTIATE_TEST_SUITE_P(Rings, Hostile, ::testing::Bool());

TEST_P(Hostile, EveryWrongRequestIsAnsweredAndTheDiskGoesOn) {
  const auto device = make(config_of(file));
  Guest guest{host, *device, GetParam()};
  const auto range = [](std::uint64_t sector, std::uint32_t count, std::uint32_t flags = 0) {
    return Guest::range(sector, count, flags);
  };
  for (const std::uint32_t type : {11u, 13u}) {
    EXPECT_EQ(guest.ranges(type, {range(0, 1), range(1, 1)}).status, BlkStatus::unsupported);
    EXPECT_EQ(guest.ranges(type, {range(0, 0xffffffff)}).status, BlkStatus::io_error);
    EXPECT_EQ(guest.ranges(type, {range(sectors, 1)}).status, BlkStatus::io_error);
    EXPECT_EQ(guest.ranges(type, {range(~0ull, 1)}).status, BlkStatus::io_error);
    EXPECT_EQ(guest.ranges(type, {range(0, 1, 2)}).status, BlkStatus::unsupported);
    EXPECT_EQ(guest.ranges(type, {}).status, BlkStatus::io_error);
    EXPECT_EQ(guest.request(type, 0, Bytes(33), 0).status, BlkStatus::io_error);
  }
  EXPECT_EQ(guest.ranges(11, {range(0, 1, 1)}).status, BlkStatus::unsupported);
  EXPECT_EQ(guest.request(0x80000000u, 0, {}, 512).status, BlkStatus::unsupported);
  EXPECT_EQ(guest.request(2, 0, Bytes(512), 96).status, BlkStatus::unsupported);
  const auto past = guest.read(sectors, 512);
  EXPECT_EQ(past.status, BlkStatus::io_error);
  EXPECT_EQ(past.used, 1u);
  EXPECT_EQ(past.data, Bytes(512, Guest::untouched));
  EXPECT_EQ(guest.read(~0ull, 512).status, BlkStatus::io_error);
  EXPECT_EQ(guest.read(1ull << 55, 512).status, BlkStatus::io_error);
  EXPECT_EQ(guest.write(0, Bytes(511)).status, BlkStatus::io_error);
  EXPECT_EQ(guest.read(0, 0).status, BlkStatus::ok);
  EXPECT_EQ(device->queue_status(0).fault, virtio::Fault::none);
  EXPECT_EQ(device->statistics().in_flight, 0u);
  EXPECT_EQ(guest.write(0, patterned(0, 512, 1)).status, BlkStatus::ok);
  EXPECT_EQ(guest.read(0, 512).data, patterned(0, 512, 1));
}

TEST_P(Hostile, AChainWithoutHeaderOrStatusPoisonsItsQueueOnly) {
  Config config = config_of(file);
  config.queues = 2;
  const auto device = make(config);
  Guest guest{host, *device, GetParam(), 2};
  std::vector<unsigned> poisoned;
  device->on_fault([&](unsigned index, virtio::Fault fault) {
    EXPECT_EQ(fault, virtio::Fault::request_malformed);
    poisoned.push_back(index);
  });
  const unsigned lost = guest.submit_raw(Bytes(15), 1);
  EXPECT_TRUE(host.wait([&] { return !poisoned.empty(); }));
  EXPECT_EQ(poisoned, std::vector<unsigned>{0});
  EXPECT_FALSE(guest.collect(lost).has_value());
  EXPECT_EQ(guest.read(0, 512, {}, 1).status, BlkStatus::ok);
}

TEST_P(Hostile, AReadonlyImageStaysAsItWas) {
  file.write(0, patterned(0, disk_bytes, 2));
  Config config = config_of(file);
  config.readonly = true;
  const auto device = make(config);
  EXPECT_NE(device->features() & virtio::wire::blk_feature::ro, 0u);
  // The driver need not have acknowledged it.
  Guest guest{host, *device, GetParam(), 1, 64, virtio::wire::blk_feature::ro};
  EXPECT_EQ(guest.write(0, Bytes(4096)).status, BlkStatus::io_error);
  EXPECT_EQ(guest.ranges(11, {Guest::range(0, 8)}).status, BlkStatus::io_error);
  EXPECT_EQ(guest.ranges(13, {Guest::range(0, 8)}).status, BlkStatus::io_error);
  EXPECT_EQ(guest.flush().status, BlkStatus::ok);
  EXPECT_EQ(guest.read(8, 4096).data, patterned(4096, 4096, 2));
  EXPECT_EQ(file.read(0, disk_bytes), patterned(0, disk_bytes, 2));
}

TEST_P(Hostile, ErrorsOfTheBackendReachTheGuest) {
  auto ram = MemoryBackend::make_ram(disk_bytes, false);
  ASSERT_TRUE(ram);
  auto made = Disk::make(config_of(file), *host.pool,
                         std::make_unique<testing::FaultyBackend>(
                             std::move(*ram), testing::FaultPlan{4096, 8192, EIO, true}));
  ASSERT_TRUE(made);
  Guest guest{host, **made, GetParam()};
  const auto bad = guest.read(8, 512);
  EXPECT_EQ(bad.status, BlkStatus::io_error);
  EXPECT_EQ(bad.used, 1u);
  EXPECT_EQ(guest.write(9, Bytes(512)).status, BlkStatus::io_error);
  EXPECT_EQ(guest.flush().status, BlkStatus::io_error);
  EXPECT_EQ(guest.read(0, 512).status, BlkStatus::ok);
  EXPECT_EQ((*made)->statistics().io_errors, 3u);
  // Write through: a write of zeroes is no success while it may be lost.
  const std::byte off{0};
  EXPECT_TRUE((*made)->write_config(32, {&off, 1}));
  EXPECT_EQ(guest.ranges(13, {Guest::range(0, 1)}).status, BlkStatus::io_error);
  // Writes take along what was cached before the switch, until a flush succeeds.
  EXPECT_EQ(guest.write(0, Bytes(512)).status, BlkStatus::io_error);
  EXPECT_EQ(guest.write(0, Bytes(512)).status, BlkStatus::io_error);
}

TEST_P(Hostile, AFileThatIsCutIsAnError) {
  file.write(0, patterned(0, disk_bytes, 3));
  Config config = config_of(file);
  config.direct = DirectMode::off;
  const auto device = make(config);
  Guest guest{host, *device, GetParam()};
  file.resize(4096 + 512);
  const auto cut = guest.read(8, 1024);
  EXPECT_EQ(cut.status, BlkStatus::io_error);
  EXPECT_EQ(cut.used, 512u + 1);  // what arrived, and the status
  EXPECT_EQ(Bytes(cut.data.begin(), cut.data.begin() + 512), patterned(4096, 512, 3));
  EXPECT_EQ(guest.read(0, 512).status, BlkStatus::ok);
}

TEST_P(Hostile, WritebackTellsTheTruth) {
  const auto device = make(config_of(file));
  EXPECT_EQ(device->config()[32], std::byte{1});
  const std::byte off{0}, on{1}, nonsense{2};
  EXPECT_TRUE(device->write_config(32, {&off, 1}));
  EXPECT_EQ(device->config()[32], std::byte{0});
  EXPECT_FALSE(device->write_config(32, {&nonsense, 1}));
  EXPECT_FALSE(device->write_config(0, {&on, 1}));
  Guest guest{host, *device, GetParam()};
  EXPECT_EQ(guest.write(0, patterned(0, 4096, 4)).status, BlkStatus::ok);
  EXPECT_EQ(device->config()[32], std::byte{0});  // SET_FEATURES does not undo it
  EXPECT_TRUE(device->write_config(32, {&on, 1}));
  EXPECT_EQ(guest.write(0, patterned(0, 4096, 5)).status, BlkStatus::ok);
  EXPECT_EQ(guest.flush().status, BlkStatus::ok);
  EXPECT_EQ(guest.read(0, 4096).data, patterned(0, 4096, 5));
}

}  // namespace
}  // namespace millrace::blk

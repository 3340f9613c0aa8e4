// A whole disk: Device over real reactors, rings and files. Every request type in every layout,
// both ring formats, all backends.
#include <gmock/gmock.h>

#include "blk/disk.hpp"
#include "blk/file_backend.hpp"
#include "blk/limits.hpp"
#include "blk/testing/guest.hpp"
#include "blk/testing/scratch_file.hpp"

namespace millrace::blk {
namespace {

using testing::Answer;
using testing::Bytes;
using testing::Guest;
using ::testing::HasSubstr;
using testing::Host;
using testing::Layout;
using testing::patterned;
using testing::ScratchFile;
using virtio::wire::BlkStatus;
namespace bit = virtio::wire::blk_feature;

constexpr std::uint64_t disk_bytes = 4 << 20;

Config config_of(BackendKind kind, const ScratchFile& file) {
  Config out;
  out.name = "disk0";
  out.backend = kind;
  out.path = file.path();
  out.size = disk_bytes;
  return out;
}

std::unique_ptr<Device> make(Host& host, const Config& config) {
  auto made = Device::make(config, *host.pool, *host.rings);
  EXPECT_TRUE(made) << made.error().message;
  return std::move(*made);
}

virtio::wire::BlkConfig space_of(const Device& device) {
  virtio::wire::BlkConfig out{};
  const auto bytes = device.config();
  EXPECT_EQ(bytes.size(), virtio::wire::blk_config_size);
  std::memcpy(&out, bytes.data(), bytes.size());
  return out;
}

class EveryDisk : public ::testing::TestWithParam<std::tuple<BackendKind, bool>> {
 protected:
  EveryDisk() : device{make(host, config_of(kind(), file))}, guest{host, *device, packed()} {}
  static BackendKind kind() { return std::get<0>(GetParam()); }
  static bool packed() { return std::get<1>(GetParam()); }
  // What a read must give where `written` was written.
  static Bytes kept(const Bytes& written) {
    return kind() == BackendKind::null ? Bytes(written.size()) : written;
  }

  Host host;
  ScratchFile file{disk_bytes};
  std::unique_ptr<Device> device;
  Guest guest;
};
INSTANTIATE_TEST_SUITE_P(Backends, EveryDisk,
                         ::testing::Combine(::testing::Values(BackendKind::file, BackendKind::ram,
                                                              BackendKind::null),
                                            ::testing::Bool()));

TEST_P(EveryDisk, ReadsAndWritesInEveryLayout) {
  const std::vector<std::uint32_t> bytewise(17, 1);
  std::vector<Layout> layouts = {
      {},
      {{}, {}, true},
      {bytewise, {1, 0}, false},
      {{5, 7, 4, 100, 0}, {511, 513, 1000, 0}, true},
      {{0xffff}, {0xffff}, false},  // header and data, data and status in one
      {{16, 512, 512, 0}, {1, 1, 1, 0}, true},
  };
  std::uint64_t sector = 1;
  for (const Layout& layout : layouts) {
    for (const std::uint64_t skew : {0u, 3u}) {
      guest.skew = skew;
      const Bytes data = patterned(sector, 4096, 1);
      const Answer wrote = guest.write(sector, data, layout);
      EXPECT_EQ(wrote.status, BlkStatus::ok);
      EXPECT_EQ(wrote.used, 1u);
      const Answer got = guest.read(sector, 4096, layout);
      EXPECT_EQ(got.status, BlkStatus::ok);
      EXPECT_EQ(got.used, 4097u);
      EXPECT_EQ(got.data, kept(data));
      if (kind() == BackendKind::file) {
        EXPECT_EQ(file.read(sector * 512, 4096), data);
      }
      sector += 9;
    }
  }
}

TEST_P(EveryDisk, ABufferMayLieAcrossMemoryRegions) {
  // From the first mapping into the second.
  guest.skew = 0;
  const Bytes data = patterned(0, 3 << 20, 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(guest.write(0, data).status, BlkStatus::ok);
    const Answer got = guest.read(0, data.size());
    EXPECT_EQ(got.status, BlkStatus::ok);
    EXPECT_EQ(got.used, data.size() + 1);
    EXPECT_EQ(got.data, kept(data));
  }
}

TEST_P(EveryDisk, AnswersTheOtherTypes) {
  const Bytes data = patterned(0, 65536, 3);
  EXPECT_EQ(guest.write(0, data).status, BlkStatus::ok);
  const Answer flushed = guest.flush();
  EXPECT_EQ(flushed.status, BlkStatus::ok);
  EXPECT_EQ(flushed.used, 1u);

  Bytes expected = kept(data);
  EXPECT_EQ(guest.ranges(13, {Guest::range(1, 3), Guest::range(16, 8)}).status, BlkStatus::ok);
  std::fill_n(expected.begin() + 512, 3 * 512, std::byte{0});
  std::fill_n(expected.begin() + 8192, 4096, std::byte{0});
  EXPECT_EQ(guest.ranges(13, {Guest::range(32, 8, 1)}).status, BlkStatus::ok);
  std::fill_n(expected.begin() + 16384, 4096, std::byte{0});
  EXPECT_EQ(
      guest.ranges(11, {Guest::range(40, 8), Guest::range(0, 0), Guest::range(64, 16)}).status,
      BlkStatus::ok);
  std::fill_n(expected.begin() + 20480, 4096, std::byte{0});
  std::fill_n(expected.begin() + 32768, 8192, std::byte{0});
  const Answer got = guest.read(0, data.size());
  EXPECT_EQ(got.status, BlkStatus::ok);
  EXPECT_EQ(got.data, expected);

  const Answer id = guest.request(8, 0, {}, 20);
  EXPECT_EQ(id.status, BlkStatus::ok);
  EXPECT_EQ(id.used, 21u);
  Bytes name(20);
  std::memcpy(name.data(), "disk0", 5);
  EXPECT_EQ(id.data, name);
  const Answer brief = guest.request(8, 0, {}, 3);
  EXPECT_EQ(brief.status, BlkStatus::ok);
  EXPECT_EQ(brief.used, 4u);
  EXPECT_EQ(brief.data, Bytes(name.begin(), name.begin() + 3));

  const Statistics counted = device->statistics();
  EXPECT_EQ(counted.write_requests, 1u);
  EXPECT_EQ(counted.write_bytes, 65536u);
  EXPECT_EQ(counted.read_requests, 1u);
  EXPECT_EQ(counted.read_bytes, 65536u);
  EXPECT_EQ(counted.flush_requests, 1u);
  EXPECT_EQ(counted.zero_requests, 2u);
  EXPECT_EQ(counted.discard_requests, 1u);
  EXPECT_EQ(counted.io_errors + counted.unsupported, 0u);
  EXPECT_GT(base::Histogram::quantile(counted.latency, 0.5), 0u);
}

TEST_P(EveryDisk, KeepsManyInFlight) {
  std::vector<unsigned> handles;
  const Layout indirect{{}, {}, true};
  for (unsigned round = 0; round < 8; ++round) {
    handles.clear();
    for (unsigned i = 0; i < 60; ++i) {
      handles.push_back(guest.submit(1, i * 16, patterned(i, 8192, round), 0, indirect));
    }
    for (const unsigned handle : handles) EXPECT_EQ(guest.wait(handle).status, BlkStatus::ok);
    handles.clear();
    for (unsigned i = 0; i < 60; ++i)
      handles.push_back(guest.submit(0, i * 16, {}, 8192, indirect));
    for (unsigned i = 0; i < 60; ++i) {
      const Answer got = guest.wait(handles[i]);
      EXPECT_EQ(got.status, BlkStatus::ok);
      EXPECT_EQ(got.data, kept(patterned(i, 8192, round)));
    }
  }
  EXPECT_TRUE(host.wait([&] { return device->statistics().in_flight == 0; }));
  EXPECT_EQ(device->statistics().oldest_ns, 0u);
}

TEST_P(EveryDisk, StopsWithRequestsInFlightAndStartsAgain) {
  std::vector<unsigned> handles;
  for (unsigned i = 0; i < 16; ++i) {
    handles.push_back(guest.submit(1, i * 128, patterned(i, 65536, 4), 0, {{}, {}, true}));
  }
  guest.stop(0);
  // What was taken is answered; what was not still waits in the ring.
  unsigned answered = 0;
  for (const unsigned handle : handles) {
    if (const auto answer = guest.collect(handle)) {
      EXPECT_EQ(answer->status, BlkStatus::ok);
      ++answered;
    }
  }
  EXPECT_EQ(device->statistics().in_flight, 0u);
  EXPECT_EQ(answered, device->statistics().write_requests);
}

TEST_P(EveryDisk, SwapsMemoryUnderLoad) {
  std::vector<unsigned> handles;
  for (unsigned i = 0; i < 32; ++i) {
    handles.push_back(guest.submit(1, i * 64, patterned(i, 32768, 5), 0, {{}, {}, true}));
  }
  bool swapped = false;
  const auto before = guest.driver().memory();
  std::vector<virtio::Region> regions(before->regions().begin(), before->regions().end());
  device->set_memory(*virtio::GuestMemory::build(regions),
                     [&](const base::Result<void>& result) { swapped = result.has_value(); });
  EXPECT_TRUE(host.wait([&] { return swapped; }));
  for (const unsigned handle : handles) EXPECT_EQ(guest.wait(handle).status, BlkStatus::ok);
  EXPECT_EQ(guest.read(64, 512).data, kept(patterned(1, 512, 5)));
}

TEST_P(EveryDisk, GrowsAndTellsTheGuest) {
  unsigned told = 0;
  device->on_config_change([&] { ++told; });
  const std::uint64_t past = disk_bytes / 512;
  EXPECT_EQ(guest.write(past, Bytes(512)).status, BlkStatus::io_error);
  if (kind() == BackendKind::file) file.resize(2 * disk_bytes);
  const auto size = device->resize(kind() == BackendKind::file ? 0 : 2 * disk_bytes);
  ASSERT_TRUE(size) << size.error().message;
  EXPECT_EQ(*size, 2 * disk_bytes);
  EXPECT_EQ(told, 1u);
  EXPECT_EQ(space_of(*device).capacity.host(), 2 * past);
  EXPECT_EQ(device->backend_status().bytes, 2 * disk_bytes);
  EXPECT_EQ(guest.write(past, patterned(0, 512, 6)).status, BlkStatus::ok);
  EXPECT_EQ(guest.read(past, 512).data, kept(patterned(0, 512, 6)));
  EXPECT_FALSE(device->resize(disk_bytes));
  EXPECT_FALSE(device->resize(2 * disk_bytes + 1));
  EXPECT_EQ(told, 1u);
}

TEST(DeviceConfig, SaysWhatTheDiskIs) {
  Host host;
  ScratchFile file{disk_bytes};
  Config config = config_of(BackendKind::file, file);
  config.queues = 3;
  config.size_max = 65536;
  config.discard_segments_max = 1;
  config.in_order = config.ring_reset = true;
  const auto device = make(host, config);
  const std::uint64_t offered = device->features();
  for (const std::uint64_t wanted :
       {bit::seg_max, bit::size_max, bit::blk_size, bit::flush, bit::topology, bit::config_wce,
        bit::mq, bit::discard, bit::write_zeroes, virtio::feature::version_1,
        virtio::feature::any_layout, virtio::feature::indirect_desc, virtio::feature::event_idx,
        virtio::feature::ring_packed, virtio::feature::in_order, virtio::feature::ring_reset}) {
    EXPECT_NE(offered & wanted, 0u) << wanted;
  }
  Config plain = config_of(BackendKind::null, file);
  EXPECT_EQ(
      make(host, plain)->features() & (virtio::feature::ring_reset | virtio::feature::in_order),
      0u);
  EXPECT_EQ(offered & (bit::ro | bit::geometry | bit::lifetime | bit::secure_erase | bit::zoned),
            0u);
  const auto space = space_of(*device);
  EXPECT_EQ(space.capacity.host(), disk_bytes / 512);
  EXPECT_EQ(space.seg_max.host(), 126u);
  EXPECT_EQ(space.size_max.host(), 65536u);
  EXPECT_EQ(space.blk_size.host(), 512u);
  EXPECT_EQ(space.num_queues.host(), 3);
  EXPECT_EQ(space.writeback, 1);
  EXPECT_EQ(space.max_discard_seg.host(), 1u);
  EXPECT_EQ(space.max_write_zeroes_seg.host(), 1u);
  EXPECT_EQ(space.max_discard_sectors.host(), (1u << 31) / 512);
  EXPECT_EQ(space.write_zeroes_may_unmap, 1);
  EXPECT_EQ(512u << space.physical_block_exp, space.min_io_size.host() * 512u);
  const BackendStatus status = device->backend_status();
  EXPECT_EQ(status.kind, "file");
  EXPECT_THAT(status.io, HasSubstr("io_uring: "));
}

TEST(DeviceConfig, RefusesWhatCannotBe) {
  Host host;
  ScratchFile file{disk_bytes};
  const auto why = [&](auto change) {
    Config config = config_of(BackendKind::ram, file);
    change(config);
    const auto made = Device::make(config, *host.pool, *host.rings);
    return made ? std::string{} : made.error().message;
  };
  EXPECT_THAT(why([](Config& c) { c.queues = 0; }), HasSubstr("queues"));
  EXPECT_THAT(why([](Config& c) { c.queues = 257; }), HasSubstr("queues"));
  EXPECT_THAT(why([](Config& c) { c.serial.assign(21, 'x'); }), HasSubstr("serial"));
  EXPECT_THAT(why([](Config& c) { c.block_size = 1000; }), HasSubstr("block_size"));
  EXPECT_THAT(why([](Config& c) { c.size = 1000; }), HasSubstr("512"));
  EXPECT_THAT(why([](Config& c) { c.size = 512, c.block_size = 4096; }), HasSubstr("block_size"));
  EXPECT_THAT(why([](Config& c) { c.segments_max = 0; }), HasSubstr("segments_max"));
  EXPECT_THAT(why([](Config& c) { c.discard_segments_max = 257; }), HasSubstr("discard_segments"));
  const auto one = make(host, config_of(BackendKind::file, file));
  EXPECT_THAT(why([](Config& c) { c.backend = BackendKind::file; }),
              HasSubstr("disk disk0: " + file.path() + " is in use"));
}

TEST(DeviceQueues, EightOverTwoReactors) {
  Host host{2};
  ScratchFile file{16 << 20};
  Config config = config_of(BackendKind::file, file);
  config.queues = 8;
  const auto device = make(host, config);
  Guest guest{host, *device, true, 8};
  std::array<unsigned, 2> placed{};
  for (unsigned q = 0; q < 8; ++q) ++placed.at(device->queue_status(q).reactor);
  EXPECT_EQ(placed[0], 4u);
  EXPECT_EQ(placed[1], 4u);
  for (unsigned round = 0; round < 4; ++round) {
    std::vector<unsigned> handles;
    for (unsigned q = 0; q < 8; ++q) {
      for (unsigned i = 0; i < 16; ++i) {
        const std::uint64_t sector = (q * 16 + i) * 16;
        handles.push_back(guest.submit(1, sector, patterned(sector, 8192, round), 0, {}, q));
      }
    }
    for (const unsigned handle : handles) EXPECT_EQ(guest.wait(handle).status, BlkStatus::ok);
    for (unsigned q = 0; q < 8; ++q) {
      const std::uint64_t sector = (7 - q) * 16 * 16;  // what another queue wrote
      EXPECT_EQ(guest.read(sector, 8192, {}, q).data, patterned(sector, 8192, round));
      EXPECT_EQ(guest.flush(q).status, BlkStatus::ok);
    }
  }
  EXPECT_EQ(device->statistics().write_requests, 4u * 128);
}

}  // namespace
}  // namespace millrace::blk

#include "guest/mem.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "guest/testing/host.hpp"

namespace millrace::guest {
namespace {

using testing::Host, testing::Queue;
using virtio::Fault;
using virtio::wire::MemBlockState, virtio::wire::MemConfig, virtio::wire::MemRequestType;
using virtio::wire::MemResponse, virtio::wire::MemResponseType;
using enum MemRequestType;
using enum MemResponseType;

constexpr std::uint64_t block = 2 << 20, blocks = 128;
// A place for requests, then the region.
constexpr std::uint64_t buffers = virtio::testing::FakeDriver::data_address;
constexpr MemPlace where{buffers + block, blocks* block, block};
constexpr std::uint64_t at(std::uint64_t number) {
  return where.address + number * block;
}

std::vector<std::byte> bytes_of(const MemPlace& place) {
  MemConfig config{};
  config.block_size = base::le64{place.block_size};
  config.addr = base::le64{place.address};
  config.region_size = base::le64{place.size};
  const auto bytes = std::as_bytes(std::span{&config, 1}).first(virtio::wire::mem_place_size);
  return {bytes.begin(), bytes.end()};
}

MemState::Request request_of(MemRequestType type, std::uint64_t address, std::uint16_t count) {
  return {.type = base::le16{static_cast<std::uint16_t>(type)},
          .padding = {},
          .addr = base::le64{address},
          .blocks = base::le16{count},
          .more_padding = {}};
}

std::shared_ptr<virtio::KeptArea> area_in(std::shared_ptr<const base::Mapping> memory) {
  return std::make_shared<virtio::KeptArea>(std::move(memory), 0);
}

// Split and packed.
class Mem : public ::testing::TestWithParam<bool> {
 protected:
  explicit Mem() { make(blocks * block); }
  ~Mem() override {
    queue.reset();
    device.reset();
  }
  void make(std::uint64_t requested, Reclaimer* reclaimer = nullptr) {
    queue.reset();
    device.reset();
    auto means = host.means();
    auto made =
        make_device("m0", MemSettings{requested},
                    {means.loop, means.pool, reclaimer == nullptr ? means.reclaimer : *reclaimer});
    ASSERT_TRUE(made) << made.error().message;
    device = *std::move(made);
    ASSERT_TRUE(device->write_config(0, bytes_of(where)));
    device->set_features(device->features());
    device->set_connected(true);
  }
  void start() {
    queue = std::make_unique<Queue>(
        host, *device, 0,
        virtio::testing::DriverConfig{
            .size = 64, .packed = GetParam(), .regions = {block, where.size}});
  }
  MemResponse answer_to(const MemState::Request& request) {
    queue->driver.store(buffers, request);
    queue->driver.store(buffers + 64,
                        MemResponse{.type = base::le16{99}, .padding = {}, .state = {}});
    EXPECT_TRUE(queue->driver.add({{buffers, sizeof request}}, {{buffers + 64, 10}}));
    queue->driver.submit();
    EXPECT_EQ(queue->next().length, 10u);
    return queue->driver.load<MemResponse>(buffers + 64);
  }
  MemResponseType ask(MemRequestType type, std::uint64_t address = 0, std::uint16_t count = 0) {
    return MemResponseType{answer_to(request_of(type, address, count)).type.host()};
  }
  MemBlockState state(std::uint64_t address, std::uint16_t count) {
    const auto answer = answer_to(request_of(MemRequestType::state, address, count));
    EXPECT_EQ(answer.type.host(), 0u);
    return MemBlockState{answer.state.host()};
  }
  MemConfig config() const {
    MemConfig out;
    std::memcpy(&out, device->config().data(), sizeof out);
    return out;
  }
  std::uint64_t plugged() const { return config().plugged_size.host() / block; }
  std::uint64_t figure(const std::string& name) const {
    for (const auto& each : device->figures()) {
      if (each.name == name) return each.value;
    }
    ADD_FAILURE() << "no figure " << name;
    return 0;
  }
  void touch(std::uint64_t number) { queue->driver.fill(at(number), block, 0x5a); }
  // Whether the host has a page for the start of the block.
  bool resident(std::uint64_t number) const {
    unsigned char in_core = 0;
    EXPECT_EQ(::mincore(queue->driver.at(at(number)), 4096, &in_core), 0);
    return (in_core & 1) != 0;
  }

  Host host;
  std::unique_ptr<Device> device;
  std::unique_ptr<Queue> queue;
};
INSTANTIATE_TEST_SUITE_P(Rings, Mem, ::testing::Bool());

TEST_P(Mem, WhatIsUnpluggedIsTheHostsAgain) {
  start();
  EXPECT_EQ(ask(plug, at(0), 8), ack);
  EXPECT_EQ(ask(plug, at(100), 2), ack);
  EXPECT_EQ(plugged(), 10u);
  for (const unsigned number : {0u, 1u, 3u, 100u}) touch(number);
  EXPECT_EQ(ask(unplug, at(1), 2), ack);
  EXPECT_EQ(plugged(), 8u);
  EXPECT_TRUE(resident(0));
  EXPECT_FALSE(resident(1));
  EXPECT_TRUE(resident(3));
  EXPECT_EQ(figure("reclaimed_bytes"), 2 * block);
  EXPECT_EQ(ask(plug, at(1), 1), ack) << "and it can come back, empty";
  EXPECT_EQ(queue->driver.load<std::uint64_t>(at(1)), 0u);
  EXPECT_EQ(ask(unplug_all), ack);
  EXPECT_EQ(plugged(), 0u);
  for (const unsigned number : {0u, 1u, 3u, 100u}) EXPECT_FALSE(resident(number)) << number;
}

TEST_P(Mem, TellsTheStateOfBlocks) {
  start();
  EXPECT_EQ(ask(plug, at(2), 2), ack);
  EXPECT_EQ(state(at(2), 2), MemBlockState::plugged);
  EXPECT_EQ(state(at(0), 2), MemBlockState::unplugged);
  EXPECT_EQ(state(at(1), 2), MemBlockState::mixed);
  EXPECT_EQ(state(at(0), blocks), MemBlockState::mixed);
}

TEST_P(Mem, NoMoreThanIsWanted) {
  make(4 * block);
  start();
  EXPECT_EQ(ask(plug, at(0), 5), nack);
  EXPECT_EQ(ask(plug, at(0), 4), ack);
  EXPECT_EQ(ask(plug, at(4), 1), nack);
  ASSERT_TRUE(device->set_size(2 * block));
  EXPECT_EQ(plugged(), 4u) << "nothing is taken by force";
  EXPECT_EQ(ask(unplug, at(0), 1), ack);
  EXPECT_EQ(ask(plug, at(0), 1), nack);
  EXPECT_EQ(figure("refused_requests"), 3u);
}

TEST_P(Mem, NonsenseIsAnError) {
  start();
  EXPECT_EQ(ask(plug, at(4), 4), ack);
  const auto top = ~std::uint64_t{0};
  struct {
    unsigned type;
    std::uint64_t address;
    std::uint16_t count;
  } const cases[] = {
      {0, at(0), 0},
      {0, at(0) + 4096, 1},
      {0, at(0) - block, 1},
      {0, at(blocks), 1},
      {0, at(blocks - 1), 2},
      {0, at(0), 0xffff},
      {0, 0, 1},
      {0, top, 1},
      {0, top - block + 1, 0xffff},
      {0, at(4), 1},
      {0, at(3), 2},
      {1, at(3), 2},
      {1, at(0), 1},
      {1, at(4), 5},
      {1, at(0), 0},
      {1, top - block + 1, 2},
      {3, at(blocks), 1},
      {3, at(0), 0},
      {3, at(0) + 1, 1},
      {4, at(0), 1},
      {0xffff, at(0), 1},
  };
  for (const auto& each : cases) {
    EXPECT_EQ(ask(MemRequestType{static_cast<std::uint16_t>(each.type)}, each.address, each.count),
              error)
        << each.type << " " << each.address << " " << each.count;
  }
  EXPECT_EQ(plugged(), 4u);
  EXPECT_EQ(figure("wrong_requests"), std::size(cases));
  EXPECT_EQ(figure("reclaimed_bytes"), 0u);
}

TEST_P(Mem, WrongBuffersPoisonTheQueue) {
  const std::vector<std::pair<std::uint32_t, std::uint32_t>> sizes{
      {23, 10}, {24, 9}, {0, 10}, {24, 0}};
  for (const auto& [out, in] : sizes) {
    make(block);
    start();
    queue->driver.store(buffers, request_of(plug, at(0), 1));
    std::vector<virtio::testing::Buffer> readable, writable;
    if (out != 0) readable.push_back({buffers, out});
    if (in != 0) writable.push_back({buffers + 64, in});
    queue->driver.add(std::span{readable}, std::span{writable});
    queue->driver.submit();
    EXPECT_TRUE(host.wait([&] {
      return device->queue_status(0).fault == Fault::request_malformed;
    })) << out
        << " " << in;
    EXPECT_EQ(plugged(), 0u);
  }
}

TEST_P(Mem, MemoryThatIsNotThereCannotBePlugged) {
  const MemPlace elsewhere{1ull << 40, where.size, block};
  device->set_connected(false);
  ASSERT_TRUE(device->write_config(0, bytes_of(elsewhere)));
  start();
  EXPECT_EQ(ask(plug, elsewhere.address, 1), error);
  EXPECT_EQ(ask(unplug_all), busy);
}

TEST_P(Mem, PinnedMemoryStays) {
  bool pinned = true;
  auto made =
      Reclaimer::make([&](const virtio::GuestMemory&, std::uint64_t address, std::uint64_t bytes) {
        return pinned && address <= at(1) && at(1) < address + bytes;
      });
  ASSERT_TRUE(made);
  make(blocks * block, made->get());
  start();
  EXPECT_EQ(ask(plug, at(0), 4), ack);
  for (const unsigned number : {0u, 1u, 2u}) touch(number);
  EXPECT_EQ(ask(unplug, at(0), 4), busy);
  EXPECT_EQ(ask(unplug_all), busy);
  EXPECT_EQ(plugged(), 4u);
  for (const unsigned number : {0u, 1u, 2u}) EXPECT_TRUE(resident(number)) << number;
  EXPECT_EQ(ask(unplug, at(2), 1), ack);
  pinned = false;
  EXPECT_EQ(ask(unplug, at(0), 2), ack);
  queue.reset();
  device.reset();
}

TEST_P(Mem, TheRecordIsTakenUpAndWhatWasDoneIsNotWrong) {
  const auto memory = *base::Mapping::anonymous(virtio::KeptArea::size);
  device->set_kept(area_in(memory));
  start();
  EXPECT_EQ(ask(plug, at(0), 8), ack);
  ASSERT_TRUE(device->set_size(64 * block));
  EXPECT_EQ(ask(unplug, at(2), 2), ack);
  device->set_kept(nullptr);
  make(blocks * block);
  unsigned changes = 0;
  device->on_config_change([&changes] { ++changes; });
  device->set_kept(area_in(memory));
  EXPECT_EQ(changes, 1u);
  EXPECT_EQ(plugged(), 6u);
  EXPECT_EQ(config().requested_size.host(), 64 * block);
  start();
  EXPECT_EQ(ask(unplug, at(2), 2), ack) << "the answer may not have been seen";
  EXPECT_EQ(ask(unplug, at(2), 2), error) << "but once only";
  EXPECT_EQ(plugged(), 6u);
  EXPECT_EQ(ask(unplug, at(0), 2), ack);
  device->set_kept(nullptr);
  make(32 * block);
  device->set_kept(area_in(memory));
  EXPECT_EQ(plugged(), 4u);
  EXPECT_EQ(config().requested_size.host(), 32 * block) << "the configuration is newer";
}

TEST_P(Mem, RecordsOfOthersAreIgnored) {
  const auto memory = *base::Mapping::anonymous(virtio::KeptArea::size);
  device->set_kept(area_in(memory));
  start();
  EXPECT_EQ(ask(plug, at(0), 8), ack);
  device->set_kept(nullptr);
  const auto record = area_in(memory)->load();
  ASSERT_FALSE(record.empty());
  const auto plugged_after = [&](std::vector<std::byte> bytes, const MemPlace& place) {
    const auto other = *base::Mapping::anonymous(virtio::KeptArea::size);
    area_in(other)->store(bytes);
    make(blocks * block);
    device->set_connected(false);
    EXPECT_TRUE(device->write_config(0, bytes_of(place)));
    device->set_kept(area_in(other));
    return plugged();
  };
  EXPECT_EQ(plugged_after(record, where), 8u);
  EXPECT_EQ(plugged_after(record, {where.address + block, where.size, block}), 0u);
  EXPECT_EQ(plugged_after(record, {where.address, where.size - block, block}), 0u);
  EXPECT_EQ(plugged_after({record.begin(), record.end() - 8}, where), 0u);
  auto wrong = record;
  wrong.back() = std::byte{0x80};  // a block beyond the region
  EXPECT_EQ(plugged_after(wrong, where), 0u);
  wrong = record;
  wrong[0] ^= std::byte{1};
  EXPECT_EQ(plugged_after(wrong, where), 0u);
}

TEST_P(Mem, AResetChangesNothingAndTheEndAll) {
  const auto memory = *base::Mapping::anonymous(virtio::KeptArea::size);
  start();
  EXPECT_EQ(ask(plug, at(0), 8), ack);
  EXPECT_FALSE(device->write_config(0, bytes_of({where.address, where.size / 2, block})));
  queue.reset();
  device->set_features(0);
  EXPECT_FALSE(device->write_config(0, bytes_of({where.address, where.size / 2, block})))
      << "while it has blocks";
  device->set_kept(area_in(memory));
  EXPECT_EQ(plugged(), 8u) << "an empty record is no news to who goes on";
  EXPECT_FALSE(area_in(memory)->load().empty());
  device->set_kept(nullptr);
  device->set_connected(false);
  EXPECT_EQ(plugged(), 0u);
  EXPECT_EQ(config().region_size.host(), 0u);
}

TEST_P(Mem, SizesAreToldInBlocksOfTheRegion) {
  make(1ull << 40);
  EXPECT_EQ(config().requested_size.host(), where.size) << "no more than there is";
  EXPECT_EQ(config().usable_region_size.host(), where.size);
  unsigned changes = 0;
  device->on_config_change([&changes] { ++changes; });
  EXPECT_TRUE(device->set_size(4 * block));
  EXPECT_TRUE(device->set_size(4 * block));
  EXPECT_EQ(changes, 1u) << "the same size again is no change";
  EXPECT_FALSE(device->set_size(block / 2));
  const auto much = device->set_size(where.size + block);
  ASSERT_FALSE(much);
  EXPECT_EQ(much.error().message, "m0: 258 MiB is more than the guest's region of 256 MiB");
  EXPECT_EQ(config().requested_size.host(), 4 * block);
}

TEST_P(Mem, PlacesThatNoRegionCanHave) {
  device->set_connected(false);
  const auto top = ~std::uint64_t{0};
  for (const MemPlace& place : std::vector<MemPlace>{
           {where.address, where.size, 0},
           {where.address, where.size, 3 << 20},
           {where.address, where.size, 4096},
           {0, 1ull << 40, 2ull << 30},
           {where.address, 0, block},
           {where.address + 4096, where.size, block},
           {where.address, where.size + 4096, block},
           {top - block + 1, 2 * block, block},
           {0, (MemBlocks::blocks_max + 1) * block, block},
       }) {
    EXPECT_FALSE(device->write_config(0, bytes_of(place))) << place.address << " " << place.size;
  }
  EXPECT_TRUE(device->write_config(0, bytes_of({0, MemBlocks::blocks_max * block, block})));
  const auto good = bytes_of(where);
  EXPECT_FALSE(device->write_config(8, good));
  EXPECT_FALSE(device->write_config(0, std::span{good}.first(16)));
  EXPECT_TRUE(device->write_config(0, good));
}

}  // namespace
}  // namespace millrace::guest

#include "guest/balloon.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "guest/testing/host.hpp"

namespace millrace::guest {
namespace {

using testing::Host, testing::Queue;
using virtio::Fault;
using virtio::wire::BalloonConfig;
namespace bit = virtio::wire::balloon_feature;

constexpr std::uint32_t page = 4096;
constexpr std::uint64_t data = virtio::testing::FakeDriver::data_address;

std::uint64_t figure_of(const Device& device, const std::string& name) {
  for (const auto& each : device.figures()) {
    if (each.name == name) return each.value;
  }
  ADD_FAILURE() << "no figure " << name;
  return 0;
}

// Split and packed.
class Balloon : public ::testing::TestWithParam<bool> {
 protected:
  void make(const BalloonSettings& settings = {}, std::uint64_t without = 0) {
    auto made = make_device("b0", settings, host.means());
    ASSERT_TRUE(made) << made.error().message;
    device = *std::move(made);
    device->set_features(device->features() & ~without);
  }
  static virtio::testing::DriverConfig ring() { return {.size = 64, .packed = GetParam()}; }
  std::uint64_t figure(const std::string& name) const { return figure_of(*device, name); }
  // Page numbers to a queue.
  static void name_pages(Queue& queue, const std::vector<std::uint32_t>& numbers,
                         std::uint64_t at) {
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      queue.driver.store(at + i * 4, base::le32{numbers[i]});
    }
    ASSERT_TRUE(queue.driver.add({{at, static_cast<std::uint32_t>(numbers.size() * 4)}}, {}));
    queue.driver.submit();
  }
  static std::uint32_t number_of(std::uint64_t address) {
    return static_cast<std::uint32_t>(address / page);
  }
  // Whether the host has a page of its own for it.
  static bool resident(const Queue& queue, std::uint64_t address) {
    unsigned char in_core = 0;
    EXPECT_EQ(::mincore(queue.driver.at(address), page, &in_core), 0);
    return (in_core & 1) != 0;
  }
  static bool holds(const Queue& queue, std::uint64_t address, std::uint8_t value) {
    const auto* const bytes = queue.driver.at(address, page);
    return std::all_of(bytes, bytes + page, [value](std::byte b) { return b == std::byte{value}; });
  }
  Host host;
  std::unique_ptr<Device> device;
};
INSTANTIATE_TEST_SUITE_P(Rings, Balloon, ::testing::Bool());

TEST_P(Balloon, ASizeThatWasCommandedOutlivesTheDaemon) {
  const auto memory = *base::Mapping::anonymous(virtio::KeptArea::size);
  const auto area = [](const std::shared_ptr<const base::Mapping>& in) {
    return std::make_shared<virtio::KeptArea>(in, 0);
  };
  make({.size = 4 * page});
  device->set_kept(area(memory));
  ASSERT_TRUE(device->set_size(100 * page));
  // Another process.
  device->set_kept(nullptr);
  make({.size = 4 * page});
  unsigned changes = 0;
  device->on_config_change([&changes] { ++changes; });
  EXPECT_EQ(figure("target_bytes"), 4u * page);
  device->set_kept(area(memory));
  EXPECT_EQ(changes, 1u);
  EXPECT_EQ(figure("target_bytes"), 100u * page);
  device->set_kept(area(memory));
  EXPECT_EQ(changes, 1u) << "no news";
  // One that was commanded before its front-end came.
  make({.size = 4 * page});
  ASSERT_TRUE(device->set_size(7 * page));
  device->set_kept(area(memory));
  EXPECT_EQ(figure("target_bytes"), 7u * page);
  // One whose configuration was changed since.
  make({.size = 5 * page});
  device->set_kept(area(memory));
  EXPECT_EQ(figure("target_bytes"), 5u * page);
  // And a record that is none.
  make({.size = 5 * page});
  auto record = area(memory)->load();
  ASSERT_FALSE(record.empty());
  record[0] ^= std::byte{2};
  record[12] ^= std::byte{1};
  area(memory)->store(record);
  device->set_kept(area(memory));
  EXPECT_EQ(figure("target_bytes"), 5u * page);
}

TEST_P(Balloon, InflatedPagesAreTheHostsAgain) {
  make();
  Queue queue{host, *device, 0, ring()};
  queue.driver.fill(data, 16 * page, 0x5a);
  // A row, a row backwards, one alone.
  name_pages(queue,
             {number_of(data) + 1, number_of(data) + 2, number_of(data) + 6, number_of(data) + 5,
              number_of(data) + 9},
             data + 12 * page);
  EXPECT_EQ(queue.next().length, 0u);
  for (unsigned i = 0; i < 12; ++i) {
    const bool gone = i == 1 || i == 2 || i == 5 || i == 6 || i == 9;
    EXPECT_EQ(resident(queue, data + i * page), !gone) << i;
    EXPECT_TRUE(holds(queue, data + i * page, gone ? 0 : 0x5a)) << i;
  }
  EXPECT_EQ(figure("inflated_bytes"), 5u * page);
  EXPECT_EQ(figure("reclaimed_bytes"), 5u * page);
  EXPECT_EQ(figure("kept_bytes"), 0u);
}

TEST_P(Balloon, ReportedPagesAreTheHostsAgain) {
  make();
  Queue queue{host, *device, 3, ring()};
  queue.driver.fill(data, 64 * page, 0x5a);
  queue.driver.add({}, {{data + page, 8 * page}, {data + 32 * page, 4 * page + 100}});
  queue.driver.submit();
  EXPECT_EQ(queue.next().length, 0u);
  for (unsigned i = 0; i < 64; ++i) {
    const bool gone = (i >= 1 && i < 9) || (i >= 32 && i < 36);
    EXPECT_TRUE(holds(queue, data + i * page, gone ? 0 : 0x5a)) << i;
  }
  EXPECT_EQ(figure("reported_bytes"), 12u * page + 100);
  EXPECT_EQ(figure("reclaimed_bytes"), 12u * page);
  EXPECT_EQ(figure("kept_bytes"), 100u) << "less than a page";
}

TEST_P(Balloon, WithoutStatisticsReportsComeOnTheThirdQueue) {
  make({.stats_s = 0});
  Queue queue{host, *device, 2, ring()};
  queue.driver.fill(data, 4 * page, 0x5a);
  queue.driver.add({}, {{data, page}});
  queue.driver.submit();
  EXPECT_EQ(queue.next().length, 0u);
  EXPECT_TRUE(holds(queue, data, 0));
  EXPECT_TRUE(holds(queue, data + page, 0x5a));
}

TEST_P(Balloon, PagesThatAreNoMemoryAreNoOnes) {
  make();
  Queue queue{host, *device, 0, ring()};
  queue.driver.fill(data, 4 * page, 0x5a);
  name_pages(queue, {0xffff'ffff, 0xffff'fffe, 0x7000'0000, number_of(data) + 1}, data + 3 * page);
  EXPECT_EQ(queue.next().length, 0u);
  EXPECT_TRUE(holds(queue, data, 0x5a));
  EXPECT_TRUE(holds(queue, data + page, 0));
  EXPECT_TRUE(holds(queue, data + 2 * page, 0x5a));
  EXPECT_EQ(figure("reclaimed_bytes"), page);
  EXPECT_EQ(figure("kept_bytes"), 3u * page);
}

TEST_P(Balloon, DeflatingTakesNothing) {
  make();
  Queue queue{host, *device, 1, ring()};
  queue.driver.fill(data, 4 * page, 0x5a);
  name_pages(queue, {number_of(data), number_of(data) + 1}, data + 3 * page);
  EXPECT_EQ(queue.next().length, 0u);
  EXPECT_TRUE(holds(queue, data, 0x5a));
  EXPECT_EQ(figure("deflated_bytes"), 2u * page);
  EXPECT_EQ(figure("reclaimed_bytes"), 0u);
}

TEST_P(Balloon, WrongBuffersPoisonTheirQueue) {
  for (const unsigned index : {0u, 1u, 3u}) {
    make();
    Queue queue{host, *device, index, ring()};
    if (index == 3) {
      queue.driver.add({{data, page}}, {});
    } else {
      queue.driver.add({}, {{data, page}});
    }
    queue.driver.submit();
    EXPECT_TRUE(
        host.wait([&] { return device->queue_status(index).fault == Fault::request_malformed; }));
    queue.stop();
    device.reset();
  }
  make();
  Queue queue{host, *device, 0, ring()};
  const std::uint32_t size = 4 * Reclaimer::numbers_max + 4;
  queue.driver.add({{data, size}}, {});
  queue.driver.submit();
  EXPECT_TRUE(host.wait([&] { return device->queue_status(0).fault == Fault::request_malformed; }));
}

TEST_P(Balloon, PinnedPagesStay) {
  std::uint64_t from = 0, bytes = 0;
  auto made =
      Reclaimer::make([&](const virtio::GuestMemory&, std::uint64_t address, std::uint64_t size) {
        from = address;
        bytes = size;
        return true;
      });
  ASSERT_TRUE(made);
  auto balloon = make_device("b0", BalloonSettings{}, {host.loop, *host.pool, **made});
  ASSERT_TRUE(balloon);
  device = *std::move(balloon);
  device->set_features(device->features());
  {
    Queue queue{host, *device, 3, ring()};
    queue.driver.fill(data, 4 * page, 0x5a);
    queue.driver.add({}, {{data + 10, 3 * page}});
    queue.driver.submit();
    EXPECT_EQ(queue.next().length, 0u);
    EXPECT_TRUE(holds(queue, data + page, 0x5a));
  }
  EXPECT_EQ(from, data + page);
  EXPECT_EQ(bytes, 2u * page);
  EXPECT_EQ(figure("pinned_bytes"), 2u * page);
  EXPECT_EQ(figure("reclaimed_bytes"), 0u);
  device.reset();
}

TEST_P(Balloon, SizesAreToldAndHeard) {
  make({.size = 8ull << 20});
  unsigned changes = 0;
  device->on_config_change([&changes] { ++changes; });
  const auto config = [this] {
    BalloonConfig out;
    std::memcpy(&out, device->config().data(), sizeof out);
    return out;
  };
  EXPECT_EQ(config().num_pages.host(), 2048u);
  const auto told = device->set_size((4ull << 20) + 5);
  ASSERT_TRUE(told);
  EXPECT_EQ(*told, 4ull << 20);
  EXPECT_EQ(config().num_pages.host(), 1024u);
  EXPECT_TRUE(device->set_size(4ull << 20));
  EXPECT_EQ(changes, 1u) << "the same size again is no change";
  const base::le32 actual{1000};
  const auto bytes = std::as_bytes(std::span{&actual, 1});
  EXPECT_TRUE(device->write_config(offsetof(BalloonConfig, actual), bytes));
  EXPECT_EQ(figure("actual_bytes"), 1000u * page);
  EXPECT_FALSE(device->write_config(offsetof(BalloonConfig, num_pages), bytes));
  EXPECT_FALSE(device->write_config(offsetof(BalloonConfig, actual), bytes.first(2)));
  device->set_features(device->features());
  EXPECT_EQ(figure("actual_bytes"), 0u) << "a driver that begins has an empty balloon";
}

TEST_P(Balloon, OffersWhatItIsTold) {
  make({.reporting = false, .deflate_on_oom = false, .stats_s = 0});
  EXPECT_EQ(device->features(), Device::ring_features);
  make();
  EXPECT_EQ(device->features(),
            Device::ring_features | bit::stats_vq | bit::deflate_on_oom | bit::page_reporting);
  EXPECT_FALSE(device->add_port({}));
}

TEST_P(Balloon, StatisticsComeAgainWhenAskedFor) {
  make({.stats_s = 1});
  Queue queue{host, *device, 2, ring()};
  const auto at = queue.driver.allocate(64);
  const auto put = [&](unsigned entry, std::uint16_t tag, std::uint64_t value) {
    queue.driver.store(at + entry * 10, base::le16{tag});
    queue.driver.store(at + entry * 10 + 2, base::le64{value});
  };
  put(0, 4, 1000);
  put(1, 5, 2000);
  put(2, 999, 1);  // of a later specification
  queue.driver.add({{at, 35}}, {});
  queue.driver.submit();
  EXPECT_TRUE(host.wait([&] { return figure("stats_updates") == 1; }));
  EXPECT_EQ(figure("guest_free_bytes"), 1000u);
  EXPECT_EQ(figure("guest_total_bytes"), 2000u);
  EXPECT_EQ(queue.next().length, 0u) << "the buffer comes back when newer figures are wanted";
  put(0, 4, 500);
  queue.driver.add({{at, 30}}, {});
  queue.driver.submit();
  EXPECT_TRUE(host.wait([&] { return figure("stats_updates") == 2; }));
  EXPECT_EQ(figure("guest_free_bytes"), 500u);
  // It is held; a queue that stops leaves it to whoever comes next.
  queue.stop();
  EXPECT_FALSE(queue.driver.poll());
}

}  // namespace
}  // namespace millrace::guest

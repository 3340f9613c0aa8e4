// What a disk says of itself and how it keeps order, as a driver meets it over a socket.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "blk/memory_backend.hpp"
#include "tests/backend_guest.hpp"
#include "tests/backend_rig.hpp"
#include "virtio/features.hpp"

namespace millrace::tests {
namespace {

using wire::BlkStatus, wire::BlkType;

constexpr auto ok = static_cast<std::uint8_t>(BlkStatus::ok);
constexpr auto io_error = static_cast<std::uint8_t>(BlkStatus::io_error);

// A backend in memory that hands every `group` requests back in reverse.
class Reversing final : public blk::Backend {
 public:
  static constexpr std::size_t group = 10;
  explicit Reversing(std::unique_ptr<Backend> inner) : inner_{std::move(inner)} {}
  [[nodiscard]] const blk::Geometry& geometry() const override { return inner_->geometry(); }
  [[nodiscard]] blk::BackendStatus status() const override { return inner_->status(); }
  [[nodiscard]] std::unique_ptr<blk::Channel> make_channel(
      unsigned depth, blk::QueueStatistics& statistics) override {
    return std::make_unique<Held>(inner_->make_channel(depth, statistics));
  }
  base::Result<std::uint64_t> resize(std::uint64_t bytes) override { return inner_->resize(bytes); }

 private:
  class Held final : public blk::Channel {
   public:
    explicit Held(std::unique_ptr<Channel> inner) : inner_{std::move(inner)} {}
    void attached(base::Reactor& reactor) noexcept override { inner_->attached(reactor); }
    void detached(base::Reactor& reactor) noexcept override { inner_->detached(reactor); }
    void submit(blk::IoList& burst) noexcept override { inner_->submit(burst); }
    bool poll(blk::IoList& done) noexcept override {
      blk::IoList finished;
      const bool busy = inner_->poll(finished);
      while (blk::Io* const io = finished.pop()) {
        held_.at(count_++) = io;
        if (count_ < group) continue;
        while (count_ > 0) done.push(*held_.at(--count_));
      }
      return busy;
    }
    [[nodiscard]] bool pending() const noexcept override { return inner_->pending(); }

   private:
    std::unique_ptr<Channel> inner_;
    std::array<blk::Io*, group> held_{};
    std::size_t count_ = 0;
  };
  std::unique_ptr<Backend> inner_;
};

// Offers `group` reads at once; the slots in the order in which they come back.
std::vector<unsigned> order_of(DiskGuest& disk) {
  for (unsigned slot = 0; slot < Reversing::group; ++slot) {
    disk.submit(0, slot, BlkType::in, 8ull * slot);
  }
  disk->kick(0);
  std::vector<unsigned> order;
  while (order.size() < Reversing::group) {
    const auto done = disk->wait(0, patience);
    if (!done) break;
    order.push_back(done->id / 3);
    EXPECT_EQ(disk.status(0, order.back()), ok);
    EXPECT_EQ(done->length, DiskGuest::block + 1);
  }
  return order;
}

std::vector<unsigned> order_with(std::uint64_t features) {
  Backend backend;
  auto config = ram_disk("disk");
  config.in_order = true;
  auto inner = blk::MemoryBackend::make_ram(config.size, false);
  CHECK(inner.has_value());
  const auto socket =
      backend.add_disk(config, std::make_unique<Reversing>(std::move(inner).value()));
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  auto guest = DiskGuest::usual();
  guest.features = features;
  DiskGuest disk{socket, guest};
  EXPECT_EQ(disk->features() & features, features);
  auto order = order_of(disk);
  EXPECT_TRUE(other.served());
  return order;
}

TEST(Backend, ADiskThatNegotiatedInOrderKeepsTheOrder) {
  std::vector<unsigned> forwards(Reversing::group), backwards;
  for (unsigned slot = 0; slot < Reversing::group; ++slot) forwards[slot] = slot;
  backwards.assign(forwards.rbegin(), forwards.rend());
  EXPECT_EQ(order_with(0), backwards);  // what the backend does
  EXPECT_EQ(order_with(virtio::feature::in_order), forwards);
}

TEST(Backend, ADiskOffersInOrderWhereConfigured) {
  Backend backend;
  auto guest = DiskGuest::usual();
  guest.features = virtio::feature::in_order;
  DiskGuest plain{backend.add_disk(ram_disk("plain")), guest};
  EXPECT_EQ(plain->features() & virtio::feature::in_order, 0u);
}

// Requests that need the kernel, and ones that are answered at once, on a file.
TEST(Backend, ADiskOnAFileKeepsTheOrderToo) {
  Backend backend;
  auto config = ram_disk("file");
  config.backend = blk::BackendKind::file;
  config.path = (backend.folder() / "image").string();
  config.in_order = true;
  {
    const base::Fd file{::open(config.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
    ASSERT_EQ(::ftruncate(file.get(), 1 << 20), 0);
  }
  auto guest = DiskGuest::usual();
  guest.features = virtio::feature::in_order;
  DiskGuest disk{backend.add_disk(config), guest};
  EXPECT_NE(disk->features() & virtio::feature::in_order, 0u);
  // The driver uses its table in order, once around: 20 of the 21 requests that fit.
  constexpr unsigned count = 20;
  for (unsigned slot = 0; slot < count; ++slot) {
    disk.submit(0, slot, slot % 2 == 0 ? BlkType::out : BlkType::get_id, 8ull * slot);
  }
  disk->kick(0);
  for (unsigned slot = 0; slot < count; ++slot) {
    const auto done = disk->wait(0, patience);
    ASSERT_TRUE(done.has_value());
    EXPECT_EQ(done->id, DiskGuest::head_of(slot));
    EXPECT_EQ(disk.status(0, slot), ok);
  }
}

std::string id_of(DiskGuest& disk) {
  std::memset(disk.data(0, 0), 0, DiskGuest::block);
  EXPECT_EQ(disk.request(0, BlkType::get_id, 0), ok);
  const auto* bytes = reinterpret_cast<const char*>(disk.data(0, 0));
  EXPECT_EQ(bytes[wire::blk_id_size], '\0');  // no byte more than an identity has
  return {bytes, ::strnlen(bytes, wire::blk_id_size)};
}

TEST(Backend, ADiskAnswersItsSerial) {
  Backend backend;
  auto config = ram_disk("with");
  config.serial = "exactly-twenty-bytes";
  DiskGuest with{backend.add_disk(config)}, without{backend.add_disk(ram_disk("without"))};
  EXPECT_EQ(id_of(with), config.serial);
  EXPECT_EQ(id_of(without), "without");
}

wire::BlkConfig space_of(DiskGuest& disk) {
  wire::BlkConfig out{};
  const auto bytes = disk->frontend().get_config(0, wire::blk_config_size);
  EXPECT_TRUE(bytes.has_value());
  if (bytes) std::memcpy(&out, bytes->data(), bytes->size());
  return out;
}

// A read whose data is `segments` pieces of a sector each.
std::optional<std::uint8_t> scattered(DiskGuest& disk, unsigned segments) {
  const auto header = disk->allocate(sizeof(wire::BlkHeader)), status = disk->allocate(1);
  std::memset(disk->at(header), 0, sizeof(wire::BlkHeader));
  *disk->at(status) = std::byte{DiskGuest::unanswered};
  std::uint16_t next = 0;
  disk->set_descriptor(0, next++, header, sizeof(wire::BlkHeader), false, true);
  for (unsigned i = 0; i < segments; ++i) {
    disk->set_descriptor(0, next++, disk->allocate(1024), 512, true, true);  // none adjoin
  }
  disk->set_descriptor(0, next, status, 1, true, false);
  disk->offer(0, 0);
  disk->kick(0);
  if (!disk->wait(0, patience)) return std::nullopt;
  return std::to_integer<std::uint8_t>(*disk->at(status));
}

TEST(Backend, ADiskTakesTheSegmentsThatItAdvertises) {
  Backend backend;
  auto config = ram_disk("disk");
  config.segments_max = 4;
  auto guest = DiskGuest::usual();
  guest.features = wire::blk_feature::seg_max;
  DiskGuest disk{backend.add_disk(config), guest};
  DiskGuest other{backend.add_disk(ram_disk("other"))};
  EXPECT_NE(disk->features() & wire::blk_feature::seg_max, 0u);
  EXPECT_EQ(space_of(disk).seg_max.host(), 4u);
  for (const unsigned segments : {1u, 3u, 4u}) EXPECT_EQ(scattered(disk, segments), ok);
  // Far beyond: an error of that request, and of nothing else.
  for (const unsigned segments : {16u, 60u}) EXPECT_EQ(scattered(disk, segments), io_error);
  EXPECT_TRUE(disk.served());
  EXPECT_TRUE(other.served());
}

TEST(Backend, ADiskStartsWithTheWriteCacheAsConfigured) {
  Backend backend;
  auto on = ram_disk("on"), off = ram_disk("off");
  off.write_cache = false;
  auto guest = DiskGuest::usual();
  guest.features = wire::blk_feature::config_wce;
  DiskGuest cached{backend.add_disk(on), guest}, through{backend.add_disk(off), guest};
  EXPECT_NE(through->features() & wire::blk_feature::config_wce, 0u);
  EXPECT_EQ(space_of(cached).writeback, 1);
  EXPECT_EQ(space_of(through).writeback, 0);
  EXPECT_TRUE(through.served());
  // The driver turns it on, and it stays on.
  const std::array<std::byte, 1> one{std::byte{1}};
  ASSERT_TRUE(
      through->frontend().set_config(offsetof(wire::BlkConfig, writeback), one).has_value());
  EXPECT_EQ(space_of(through).writeback, 1);
  EXPECT_TRUE(through.served());
}

TEST(Backend, ADiskWithoutMediumIsServedToo) {
  Backend backend;
  auto config = ram_disk("null");
  config.backend = blk::BackendKind::null;
  DiskGuest disk{backend.add_disk(config)};
  std::memset(disk.data(0, 0), 0xff, DiskGuest::block);
  EXPECT_EQ(disk.request(0, BlkType::out, 0), ok);
  EXPECT_EQ(disk.request(0, BlkType::in, 0), ok);
  EXPECT_EQ(disk.data(0, 0)[0], std::byte{0});
}

}  // namespace
}  // namespace millrace::tests

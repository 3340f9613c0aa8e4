#include "daemon/wire_memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>

#include "daemon/stall_watch.hpp"

namespace millrace::daemon {
namespace {

constexpr std::uint64_t mebibyte = 1 << 20;

// Remembers what is mapped. Both threads come here.
class FakeDoor final : public DmaDoor {
 public:
  base::Result<void> map(std::uint64_t iova, const std::byte* address,
                         std::uint64_t bytes) override {
    const std::lock_guard lock{mutex_};
    if (refuses) return base::fail("no memory can be locked");
    EXPECT_TRUE(mapped_.try_emplace(iova, address, bytes).second) << "mapped twice";
    return {};
  }
  base::Result<void> unmap(std::uint64_t iova, std::uint64_t bytes) override {
    const std::lock_guard lock{mutex_};
    const auto found = mapped_.find(iova);
    if (found == mapped_.end() || found->second.second != bytes) return base::fail("not mapped");
    mapped_.erase(found);
    return {};
  }
  std::size_t count() {
    const std::lock_guard lock{mutex_};
    return mapped_.size();
  }
  std::atomic<bool> refuses{false};

 private:
  std::mutex mutex_;
  std::map<std::uint64_t, std::pair<const std::byte*, std::uint64_t>> mapped_;
};

struct WireMemoryTest : ::testing::Test {
  WireMemoryTest() {
    memory = *WireMemory::make(
        {loop,
         door,
         board,
         {},
         [this](std::shared_ptr<const vswitch::DmaRegions> regions, std::function<void()> over) {
           published = std::move(regions);
           overs.push_back(std::move(over));
           if (device_is_done) end_loans();
         }},
        vfio::IovaSpace{{}});
  }
  void end_loans() {
    for (auto& over : std::exchange(overs, {})) over();
  }
  static virtio::Region region(std::uint64_t guest, std::uint64_t size) {
    base::Fd file{::memfd_create("guest", MFD_CLOEXEC)};
    EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(size)), 0);
    return {guest, size, 0x7000'0000'0000 + guest, *base::Mapping::map(file, 0, size)};
  }
  static std::shared_ptr<const virtio::GuestMemory> guest(std::vector<virtio::Region> regions) {
    return *virtio::GuestMemory::build(std::move(regions));
  }
  void until(const std::function<bool()>& holds) {
    for (int i = 0; i < 2000 && !holds(); ++i) loop.step(std::chrono::milliseconds{10});
    ASSERT_TRUE(holds());
  }
  [[nodiscard]] std::size_t reachable() const { return published ? published->all().size() : 0; }

  base::EventLoop loop;
  FakeDoor door;
  blk::PinBoard board;
  bool device_is_done = true;
  std::shared_ptr<const vswitch::DmaRegions> published;
  std::vector<std::function<void()>> overs;
  std::unique_ptr<WireMemory> memory;
};

TEST_F(WireMemoryTest, PublishesWhatIsMapped) {
  const auto whole = guest({region(0, 2 * mebibyte), region(4 * mebibyte, mebibyte)});
  memory->use("a", whole);
  until([&] { return reachable() == 2; });
  EXPECT_EQ(door.count(), 2u);
  EXPECT_TRUE(board.holds(*whole, 0, 1));
  for (const auto& each : whole->regions()) {
    vswitch::DmaRegions::Hint hint;
    const auto iova = published->find(each.mapping->data() + 100, each.size - 100, hint);
    ASSERT_TRUE(iova);
    EXPECT_FALSE(published->find(each.mapping->data() + 100, each.size, hint));
  }
  ASSERT_EQ(memory->status().size(), 2u);
  EXPECT_STREQ(memory->status()[1].state, "mapped");
  EXPECT_EQ(memory->status()[1].guest_address, 4 * mebibyte);
}

TEST_F(WireMemoryTest, WhatGoesStaysUntilTheDeviceIsDoneWithIt) {
  const auto first = region(0, mebibyte), second = region(mebibyte, mebibyte);
  const std::weak_ptr<const base::Mapping> kept = second.mapping;
  memory->use("a", guest({first, second}));
  until([&] { return reachable() == 2; });
  device_is_done = false;
  memory->use("a", guest({first}));
  EXPECT_EQ(reachable(), 1u);  // no more of it is lent
  for (int i = 0; i < 20; ++i) loop.step(std::chrono::milliseconds{1});
  EXPECT_EQ(door.count(), 2u);
  EXPECT_FALSE(kept.expired());
  device_is_done = true;
  end_loans();
  until([&] { return door.count() == 1 && memory->status().size() == 1; });
}

TEST_F(WireMemoryTest, MemoryThatComesBackWhileItLeavesIsMappedAnew) {
  const auto whole = guest({region(0, mebibyte)});
  memory->use("a", whole);
  until([&] { return reachable() == 1; });
  device_is_done = false;
  memory->use("a", nullptr);
  memory->use("a", whole);
  EXPECT_EQ(reachable(), 0u);
  device_is_done = true;
  end_loans();
  until([&] { return reachable() == 1; });
  EXPECT_EQ(door.count(), 1u);
  EXPECT_TRUE(board.holds(*whole, 0, 1));
  memory->use("a", nullptr);
  until([&] { return door.count() == 0 && memory->status().empty(); });
  EXPECT_FALSE(board.holds(*whole, 0, 1));
}

TEST_F(WireMemoryTest, WhatCannotBeMappedIsSaid) {
  door.refuses = true;
  const auto whole = guest({region(0, mebibyte)});
  memory->use("a", whole);
  until([&] { return std::string_view{memory->status().at(0).state} == "failed"; });
  EXPECT_EQ(memory->status()[0].why, "no memory can be locked");
  EXPECT_EQ(reachable(), 0u);
  memory->use("a", nullptr);
  EXPECT_TRUE(memory->status().empty());
  EXPECT_FALSE(board.holds(*whole, 0, 1));
}

TEST_F(WireMemoryTest, AnUplinkThatGoesUnmapsAll) {
  memory->use("a", guest({region(0, mebibyte)}));
  memory->use("b", guest({region(0, mebibyte)}));
  until([&] { return reachable() == 2; });
  device_is_done = false;
  memory->use("a", nullptr);
  memory.reset();
  EXPECT_EQ(door.count(), 0u);
  end_loans();  // an answer that comes later meets nobody
}

TEST(StallWatch, SeesADeviceThatKeepsWhatItWasLent) {
  StallWatch watch;
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(watch.look(7, 7, false));  // nothing is out
  for (std::uint64_t i = 0; i < 9; ++i)
    EXPECT_FALSE(watch.look(50, 8 + i, false));  // slow, but moving
  EXPECT_FALSE(watch.look(60, 16, false));
  EXPECT_FALSE(watch.look(61, 16, false));
  EXPECT_TRUE(watch.look(61, 16, false));
  EXPECT_FALSE(watch.look(61, 61, false));
  // One whose standby carries is waited for no longer than it takes to see that it stands still.
  EXPECT_FALSE(watch.look(62, 61, true));
  EXPECT_TRUE(watch.look(62, 61, true));
}

}  // namespace
}  // namespace millrace::daemon

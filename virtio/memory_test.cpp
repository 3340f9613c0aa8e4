#include "virtio/memory.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "virtio/limits.hpp"

namespace millrace::virtio {
namespace {

Region region(std::uint64_t guest, std::uint64_t size, std::uint64_t user) {
  auto mapping =
      base::Mapping::anonymous(size == 0 ? 4096 : std::min<std::uint64_t>(size, 1 << 20));
  EXPECT_TRUE(mapping.has_value());
  return {guest, size, user, *mapping};
}

std::shared_ptr<const GuestMemory> build(std::vector<Region> regions) {
  auto memory = GuestMemory::build(std::move(regions));
  EXPECT_TRUE(memory.has_value());
  return *memory;
}

TEST(GuestMemory, TranslatesInsideOneRegion) {
  const auto memory = build({region(0x10000, 0x2000, 0x7000'0000), region(0x0, 0x1000, 0x100)});
  GuestMemory::Hint hint;
  const auto bytes = memory->translate(0x10010, 0x20, hint);
  ASSERT_EQ(bytes.size(), 0x20u);
  EXPECT_EQ(bytes.data(), memory->regions()[1].mapping->data() + 0x10);
  EXPECT_EQ(memory->translate(0, 1, hint).data(), memory->regions()[0].mapping->data());
}

TEST(GuestMemory, GivesTheContiguousPrefix) {
  const auto memory = build({region(0x1000, 0x1000, 0), region(0x2000, 0x1000, 0x10000)});
  GuestMemory::Hint hint;
  EXPECT_EQ(memory->translate(0x1ff0, 0x20, hint).size(), 0x10u);
  EXPECT_EQ(memory->translate(0x2000, 0x10, hint).data(), memory->regions()[1].mapping->data());
  EXPECT_EQ(memory->translate(0x2fff, 0xffff'ffff, hint).size(), 1u);
}

TEST(GuestMemory, FindsNothingOutside) {
  const auto memory = build({region(0x1000, 0x1000, 0), region(0x4000, 0x1000, 0x10000)});
  GuestMemory::Hint hint;
  for (const std::uint64_t address :
       {0x0ull, 0xfffull, 0x2000ull, 0x3fffull, 0x5000ull, ~0ull, 1ull << 63}) {
    EXPECT_TRUE(memory->translate(address, 1, hint).empty()) << address;
  }
  EXPECT_TRUE(memory->translate(0x1000, 0, hint).empty());
  EXPECT_TRUE(build({})->translate(0, 1, hint).empty());
}

TEST(GuestMemory, HintChangesNoResult) {
  std::vector<Region> regions;
  for (std::uint64_t i = 0; i < 20; ++i) {
    regions.push_back(region(0x10000 + i * 0x3000, 0x1000, i * 0x1000));
  }
  const auto memory = build(std::move(regions));
  for (std::uint32_t last = 0; last < 25; ++last) {
    for (std::uint64_t address = 0xf000; address < 0x50000; address += 0x800) {
      GuestMemory::Hint fresh, stale{last};
      const auto a = memory->translate(address, 0x1800, fresh);
      const auto b = memory->translate(address, 0x1800, stale);
      EXPECT_EQ(a.data(), b.data());
      EXPECT_EQ(a.size(), b.size());
    }
  }
}

TEST(GuestMemory, UserAddressesMustLieInOneRegion) {
  const auto memory = build({region(0x0, 0x1000, 0x9000), region(0x1000, 0x1000, 0x8000)});
  EXPECT_EQ(memory->from_user(0x9ff0, 0x10), memory->regions()[0].mapping->data() + 0xff0);
  EXPECT_EQ(memory->from_user(0x9ff0, 0x11), nullptr);
  EXPECT_EQ(memory->from_user(0x8ff0, 0x20), nullptr);
  EXPECT_EQ(memory->from_user(0x7fff, 1), nullptr);
  EXPECT_EQ(memory->from_user(0x8000, std::numeric_limits<std::uint64_t>::max()), nullptr);
  std::uint64_t guest = 0;
  EXPECT_TRUE(memory->user_to_guest(0x8123, guest));
  EXPECT_EQ(guest, 0x1123u);
  EXPECT_FALSE(memory->user_to_guest(0xa000, guest));
  EXPECT_EQ(memory->guest_end(), 0x2000u);
}

TEST(GuestMemory, RefusesNonsense) {
  const auto refused = [](std::vector<Region> regions) {
    return !GuestMemory::build(std::move(regions)).has_value();
  };
  EXPECT_TRUE(refused({region(0x1000, 0, 0)}));
  EXPECT_TRUE(refused({region(0x1000, 0x1000, 0), region(0x1fff, 0x1000, 0x10000)}));
  EXPECT_TRUE(refused({region(0x1000, 0x1000, 0), region(0x9000, 0x1000, 0xfff)}));
  EXPECT_TRUE(refused({region(~0ull - 0xfff, 0x2000, 0)}));
  EXPECT_TRUE(refused({region(0, 0x2000, ~0ull - 0xfff)}));
  EXPECT_TRUE(refused({region(0, 0x10'0000'0000, 0)}));  // larger than its mapping
  std::vector<Region> many;
  for (std::uint64_t i = 0; i <= limits::memory_slots_max; ++i) {
    many.push_back(region(i * 0x1000, 0x1000, i * 0x1000));
  }
  EXPECT_TRUE(refused(many));
  many.pop_back();
  EXPECT_FALSE(refused(many));
}

}  // namespace
}  // namespace millrace::virtio

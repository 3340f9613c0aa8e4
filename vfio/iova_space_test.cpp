#include "vfio/iova_space.hpp"

#include <gtest/gtest.h>

namespace millrace::vfio {
namespace {

constexpr std::uint64_t gibibyte = 1ull << 30, mebibyte = 1ull << 20;
// An IOMMU of 39 bits with the window of interrupt messages left out.
const std::vector<IovaRange> ranges{{0, 0xfedf'ffff}, {0xfef0'0000, 0x7f'ffff'ffff}};

TEST(IovaSpace, TakesPlacesThatDoNotOverlap) {
  IovaSpace space{ranges};
  const auto a = space.take(0x7f00'0000'0000, 8 * mebibyte);
  const auto b = space.take(0x7f10'0000'0000, 8 * mebibyte);
  ASSERT_TRUE(a && b);
  EXPECT_GE(*a, 4 * gibibyte);
  EXPECT_TRUE(*a + 8 * mebibyte <= *b || *b + 8 * mebibyte <= *a);
  space.give(*a);
  EXPECT_EQ(space.take(0x7f00'0000'0000, 8 * mebibyte), a);
}

TEST(IovaSpace, LiesInLargePagesAsTheMemoryDoes) {
  IovaSpace space{ranges};
  const std::uint64_t address = 0x7f12'3456'7000;
  EXPECT_EQ(*space.take(address, 3 * gibibyte) % gibibyte, address % gibibyte);
  EXPECT_EQ(*space.take(address, 5 * mebibyte) % (2 * mebibyte), address % (2 * mebibyte));
  EXPECT_EQ(*space.take(address, 4096) % 4096, 0u);
}

TEST(IovaSpace, KeepsOutOfWhatOthersHave) {
  IovaSpace space{ranges};
  space.reserve(4 * gibibyte, 64 * gibibyte);
  EXPECT_GE(*space.take(0, gibibyte), 68 * gibibyte);
  // Nothing is left above: below 4 GiB then, around the window.
  space.reserve(68 * gibibyte, 1ull << 48);
  const auto low = space.take(0, 2 * gibibyte);
  ASSERT_TRUE(low);
  EXPECT_EQ(*low, gibibyte);
  EXPECT_FALSE(space.take(0, 2 * gibibyte));
}

TEST(IovaSpace, SaysWhereThereIsNoRoom) {
  IovaSpace space{ranges};
  EXPECT_FALSE(space.take(0, 1ull << 40));
  EXPECT_TRUE(IovaSpace{{}}.take(0, 1ull << 40));  // an old kernel, which says no ranges
}

}  // namespace
}  // namespace millrace::vfio

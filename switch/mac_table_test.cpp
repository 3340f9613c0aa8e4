#include "switch/mac_table.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace millrace::vswitch {
namespace {

using Learned = MacTable::Learned;
constexpr std::uint32_t ageing = 1000, quota = 100;

MacTableConfig small(unsigned addresses_max = 1024) {
  return {addresses_max, ageing, 0x1234};
}
MacKey key(std::uint64_t number) {
  return 2 + (number << 8);
}

TEST(MacTable, FindsWhatItLearned) {
  MacTable table{small()};
  EXPECT_EQ(table.find(key(1), 0), no_port);
  EXPECT_EQ(table.learn(key(1), 3, quota, 0), Learned::news);
  EXPECT_EQ(table.learn(key(1), 3, quota, 10), Learned::known);
  EXPECT_EQ(table.find(key(1), 10), 3);
  EXPECT_EQ(table.learned(3), 1u);
}

TEST(MacTable, NobodyHasTheAddressZero) {
  MacTable table{small()};
  EXPECT_EQ(table.find(0, 0), no_port);
  static_cast<void>(table.learn(key(1), 3, quota, 0));
  table.flush(0, table.bucket_count(), no_port, true);
  EXPECT_EQ(table.find(0, 0), no_port);
}

// In one tick: the answer is remembered.
TEST(MacTable, WhatWasNotThereIsFoundOnceItCame) {
  MacTable table{small()};
  EXPECT_EQ(table.find(key(1), 7), no_port);
  table.prefetch(key(1), 7);
  EXPECT_EQ(table.find(key(1), 7), no_port);
  static_cast<void>(table.learn(key(1), 1, quota, 7));
  EXPECT_EQ(table.find(key(1), 7), 1);
  EXPECT_EQ(table.find(key(2), 7), no_port);
  EXPECT_TRUE(table.add_static(key(2), 2, 7));
  EXPECT_EQ(table.find(key(2), 7), 2);
  EXPECT_EQ(table.find(key(3), 7), no_port);
  table.learn_remote(key(3), 3, quota, 7);
  EXPECT_EQ(table.find(key(3), 7), 3);
}

TEST(MacTable, SeparatesVlans) {
  MacTable table{small()};
  const std::byte mac[6] = {std::byte{2}};
  ASSERT_NE(mac_key(mac, 10), mac_key(mac, 20));
  static_cast<void>(table.learn(mac_key(mac, 10), 1, quota, 0));
  static_cast<void>(table.learn(mac_key(mac, 20), 2, quota, 0));
  EXPECT_EQ(table.find(mac_key(mac, 10), 0), 1);
  EXPECT_EQ(table.find(mac_key(mac, 20), 0), 2);
}

TEST(MacTable, AgesBetweenOneAndOneAndAQuarter) {
  MacTable table{small()};
  static_cast<void>(table.learn(key(1), 1, quota, 0));
  EXPECT_EQ(table.learn(key(1), 1, quota, 249), Learned::known);  // not renewed: too soon
  EXPECT_EQ(table.find(key(1), 1249), 1);                         // a full ageing time after that
  EXPECT_EQ(table.find(key(1), 1250), no_port);
  EXPECT_EQ(table.learn(key(1), 1, quota, 250), Learned::news);  // renewed, the others are told
  EXPECT_EQ(table.find(key(1), 1499), 1);
}

// All in one tick, where answers are remembered.
TEST(MacTable, WhatItRemembersEndsWithAnyChange) {
  MacTable table{small()};
  const auto found = [&table](std::uint64_t number) { return table.find(key(number), 7); };
  static_cast<void>(table.learn(key(1), 1, quota, 7));
  EXPECT_EQ(found(1), 1);
  EXPECT_EQ(table.learn(key(1), 2, quota, 7), Learned::news);  // it moved
  EXPECT_EQ(found(1), 2);
  EXPECT_EQ(table.learn(key(1), 1, quota, 7), Learned::news);
  EXPECT_EQ(found(1), 1);
  table.learn_remote(key(1), 3, quota, 7);
  EXPECT_EQ(found(1), 3);
  EXPECT_EQ(table.learn(key(1), 3, quota, 7), Learned::known);
  table.forget_stamp(key(1), 7);
  EXPECT_EQ(table.learn(key(1), 3, quota, 7), Learned::news);
  EXPECT_EQ(found(1), 3);
  table.flush(0, table.bucket_count(), 3, false);
  EXPECT_EQ(found(1), no_port);
  static_cast<void>(table.learn(key(1), 1, quota, 7));
  EXPECT_EQ(found(1), 1);
  ASSERT_TRUE(table.add_static(key(1), 4, 7));
  EXPECT_EQ(found(1), 4);
  EXPECT_EQ(table.learn(key(1), 1, quota, 7), Learned::forbidden);
  EXPECT_EQ(table.learn(key(1), 4, quota, 7), Learned::known);
}

TEST(MacTable, AgesAcrossTheWrapOfTime) {
  MacTable table{small()};
  const std::uint32_t start = 0xffff'ff00u;
  static_cast<void>(table.learn(key(1), 1, quota, start));
  EXPECT_EQ(table.find(key(1), start + 1000), 1);
  EXPECT_EQ(table.find(key(1), start + 1300), no_port);
}

TEST(MacTable, NeverAgesWithoutAnAgeingTime) {
  MacTable table{{16, 0, 7}};
  static_cast<void>(table.learn(key(1), 1, quota, 0));
  EXPECT_EQ(table.find(key(1), 1u << 29), 1);
}

TEST(MacTable, ExpireGivesTheQuotaBack) {
  MacTable table{small()};
  for (unsigned i = 0; i < 200; ++i) static_cast<void>(table.learn(key(i), 1, quota, 0));
  EXPECT_EQ(table.learned(1), quota);
  table.expire(0, table.bucket_count(), 2000);
  EXPECT_EQ(table.learned(1), 0u);
  EXPECT_EQ(table.size(), 0u);
}

TEST(MacTable, FloodOfOnePortEvictsNobody) {
  MacTable table{small()};
  for (unsigned i = 0; i < 50; ++i) {
    ASSERT_EQ(table.learn(key(1'000'000 + i), 2, quota, 0), Learned::news);
  }
  unsigned refused = 0;
  for (unsigned i = 0; i < 100'000; ++i) {
    refused += table.learn(key(i), 1, 600, 1) == Learned::refused ? 1u : 0u;
  }
  EXPECT_EQ(refused, 100'000u - 600u);
  for (unsigned i = 0; i < 50; ++i) EXPECT_EQ(table.find(key(1'000'000 + i), 1), 2);
}

TEST(MacTable, HoldsAsManyAddressesAsPromised) {
  MacTable table{small(4096)};
  for (unsigned i = 0; i < 4096; ++i) {
    ASSERT_EQ(table.learn(key(i), static_cast<PortId>(i % 50), 4096, 0), Learned::news) << i;
  }
  EXPECT_EQ(table.learn(key(5000), 1, 4096, 0), Learned::refused);
  for (unsigned i = 0; i < 4096; ++i) ASSERT_EQ(table.find(key(i), 0), i % 50);
}

TEST(MacTable, KeepsCollidingAddressesApart) {
  MacTable table{{8, ageing, 1}};  // two buckets: every address has the same two homes
  ASSERT_EQ(table.bucket_count(), 2u);
  for (unsigned i = 0; i < 8; ++i) ASSERT_EQ(table.learn(key(i), 1, quota, 0), Learned::news);
  EXPECT_EQ(table.learn(key(8), 2, quota, 0), Learned::refused);
  for (unsigned i = 0; i < 8; ++i) EXPECT_EQ(table.find(key(i), 0), 1);
}

TEST(MacTable, MovesButNotForEver) {
  MacTable table{small()};
  static_cast<void>(table.learn(key(1), 1, quota, 0));
  unsigned moved = 0;
  for (unsigned i = 0; i < 40; ++i) {
    moved += table.learn(key(1), i % 2 == 0 ? PortId{2} : PortId{1}, quota, i) == Learned::news;
  }
  EXPECT_EQ(moved, MacTable::moves_max);
  EXPECT_EQ(table.find(key(1), 40), 2);
  EXPECT_EQ(table.learned(1), 0u);
  EXPECT_EQ(table.learned(2), 1u);
  MacTable longer{{1024, 100'000, 5}};
  for (unsigned i = 0; i < 40; ++i) {
    static_cast<void>(longer.learn(key(1), static_cast<PortId>(i % 2), quota, i));
  }
  const auto later = 100 + MacTable::move_window_ticks;
  const auto other = static_cast<PortId>(1 - longer.find(key(1), later));
  EXPECT_EQ(longer.learn(key(1), other, quota, later), Learned::news);
}

TEST(MacTable, MoveNeedsTheNewPortsQuota) {
  MacTable table{small()};
  static_cast<void>(table.learn(key(1), 1, quota, 0));
  static_cast<void>(table.learn(key(2), 2, 1, 0));
  EXPECT_EQ(table.learn(key(1), 2, 1, 0), Learned::refused);
  EXPECT_EQ(table.find(key(1), 0), 1);
}

TEST(MacTable, StaticAddressesStayAndAreForbiddenToOthers) {
  MacTable table{small()};
  static_cast<void>(table.learn(key(1), 9, quota, 0));
  ASSERT_TRUE(table.add_static(key(1), 1, 0));
  EXPECT_EQ(table.learned(9), 0u);
  EXPECT_EQ(table.learn(key(1), 2, quota, 0), Learned::forbidden);
  EXPECT_EQ(table.learn(key(1), 1, 0, 0), Learned::known);
  table.learn_remote(key(1), 2, quota, 0);
  table.expire(0, table.bucket_count(), 1'000'000);
  table.flush(0, table.bucket_count(), no_port, false);
  EXPECT_EQ(table.find(key(1), 1'000'000), 1);
  table.flush(0, table.bucket_count(), 1, true);
  EXPECT_EQ(table.find(key(1), 0), no_port);
  EXPECT_EQ(table.size(), 0u);
}

TEST(MacTable, StaticFindsAPlaceInAFullTable) {
  MacTable table{{8, ageing, 1}};
  for (unsigned i = 0; i < 8; ++i) static_cast<void>(table.learn(key(i), 1, quota, 0));
  for (unsigned i = 0; i < 16; ++i) ASSERT_TRUE(table.add_static(key(100 + i), 2, 0));
  EXPECT_FALSE(table.add_static(key(200), 2, 0));
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(table.find(key(100 + i), 0), 2);
}

TEST(MacTable, FlushesOnePortOnly) {
  MacTable table{small()};
  static_cast<void>(table.learn(key(1), 1, quota, 0));
  static_cast<void>(table.learn(key(2), 2, quota, 0));
  table.flush(0, table.bucket_count(), 1, false);
  EXPECT_EQ(table.find(key(1), 0), no_port);
  EXPECT_EQ(table.find(key(2), 0), 2);
}

TEST(MacTable, RemoteRefreshAndMove) {
  MacTable table{small()};
  table.learn_remote(key(1), 1, quota, 0);
  table.learn_remote(key(1), 1, quota, 900);
  EXPECT_EQ(table.find(key(1), 2000), 1);
  table.learn_remote(key(1), 2, quota, 1000);
  EXPECT_EQ(table.find(key(1), 1000), 2);
  EXPECT_EQ(table.learned(1), 0u);
}

TEST(MacTable, ForgottenStampIsNewsAgain) {
  MacTable table{small()};
  static_cast<void>(table.learn(key(1), 1, quota, 5));
  table.forget_stamp(key(1), 5);
  EXPECT_EQ(table.learn(key(1), 1, quota, 5), Learned::news);
}

}  // namespace
}  // namespace millrace::vswitch

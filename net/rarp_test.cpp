#include "net/rarp.hpp"

#include <gtest/gtest.h>

#include <array>

namespace millrace::net {
namespace {

constexpr std::array<std::uint8_t, 6> mac{0x52, 0x54, 0, 1, 2, 3};

std::uint8_t at(const vswitch::Packet& p, std::size_t i) {
  return std::to_integer<std::uint8_t>(p.header.at(i));
}

TEST(Rarp, IsABroadcastRequestAboutTheGuest) {
  vswitch::Packet p;
  make_rarp(mac, 0, 7, p);
  EXPECT_EQ(p.length, 60u);
  EXPECT_EQ(p.header_size, 60u);
  EXPECT_EQ(p.view_count, 0u);
  EXPECT_EQ(p.source, 7);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(at(p, i), 0xff);
    EXPECT_EQ(at(p, 6 + i), mac[i]);
    EXPECT_EQ(at(p, 22 + i), mac[i]) << "sender";
    EXPECT_EQ(at(p, 32 + i), mac[i]) << "target";
  }
  const std::array<std::uint8_t, 10> middle{0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3};
  for (std::size_t i = 0; i < middle.size(); ++i) EXPECT_EQ(at(p, 12 + i), middle[i]) << i;
}

TEST(Rarp, CarriesATagOnATrunk) {
  vswitch::Packet p;
  make_rarp(mac, 20, 7, p);
  EXPECT_EQ(p.length, 64u);
  EXPECT_EQ(at(p, 12), 0x81);
  EXPECT_EQ(at(p, 15), 20);
  EXPECT_EQ(at(p, 16), 0x80);
  EXPECT_EQ(at(p, 17), 0x35);
}

}  // namespace
}  // namespace millrace::net

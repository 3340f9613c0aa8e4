#include "vmm/size_options.hpp"

#include <gtest/gtest.h>

namespace millrace::vmm {

namespace {

TEST(SizeOptions, VcpusAndRoomForMore) {
  EXPECT_EQ(parse_cpus("3")->count, 3u);
  EXPECT_EQ(parse_cpus("3")->most, 3u);
  EXPECT_EQ(parse_cpus("2,max=8")->count, 2u);
  EXPECT_EQ(parse_cpus("2,max=8")->most, 8u);
  for (const auto* const text : {"", "0", "65", "-1", "2x", "2,", "2,max", "2,max=", "2,max=65",
                                 "4,max=3", "2,min=1", ","}) {
    EXPECT_FALSE(parse_cpus(text)) << text;
  }
  EXPECT_EQ(parse_cpus("4,max=3").error().message, "max=3 is less than the 4 vCPUs of the start");
}

TEST(SizeOptions, MemoryAndRoomForMore) {
  const auto plain = parse_memory("512M");
  EXPECT_EQ(plain->bytes, 512u << 20);
  EXPECT_EQ(plain->most, plain->bytes);
  EXPECT_EQ(plain->slots, 0u);
  const auto grows = parse_memory("512M,max=4G,slots=3");
  EXPECT_EQ(grows->most, 4ull << 30);
  EXPECT_EQ(grows->slots, 3u);
  EXPECT_EQ(parse_memory("512M,max=4G")->slots, 8u);
  for (const auto* const text : {"", "lots", "1G,max=512M", "1G,slots=2", "1G,max=2G,slots=0",
                                 "1G,max=2G,slots=33", "1G,max=many", "1G,", "1G,size=2G"}) {
    EXPECT_FALSE(parse_memory(text)) << text;
  }
}

}  // namespace

}  // namespace millrace::vmm

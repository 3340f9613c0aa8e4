#include "vmm/bus.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

namespace millrace::vmm {

namespace {

class Recorder final : public BusDevice {
 public:
  void read(std::uint64_t offset, std::span<std::byte> data) override {
    last_offset = offset;
    std::ranges::fill(data, std::byte{0x11});
  }
  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    last_offset = offset;
    written = data.size();
    if (on_write) on_write();
  }
  std::uint64_t last_offset = ~0ull;
  std::size_t written = 0;
  std::function<void()> on_write;
};

TEST(Bus, FindsTheDeviceByItsWholeAccess) {
  Bus bus;
  Recorder device;
  ASSERT_TRUE(bus.map(0x1000, 0x10, device));
  std::array<std::byte, 4> data{};
  EXPECT_TRUE(bus.read(0x100c, data));
  EXPECT_EQ(device.last_offset, 0xcu);
  EXPECT_EQ(data[3], std::byte{0x11});
  // An access over the end, and ones beside it, are nobody's: all ones.
  for (const std::uint64_t address : {0x100dull, 0xfffull, 0x1010ull, ~0ull}) {
    data.fill(std::byte{0});
    EXPECT_FALSE(bus.read(address, data)) << address;
    EXPECT_EQ(data[0], std::byte{0xff});
    EXPECT_FALSE(bus.write(address, data));
  }
  EXPECT_EQ(device.written, 0u);
}

TEST(Bus, RefusesRangesThatOverlapOrMakeNoSense) {
  Bus bus;
  Recorder device;
  ASSERT_TRUE(bus.map(0x1000, 0x1000, device));
  EXPECT_FALSE(bus.map(0x1fff, 1, device));
  EXPECT_FALSE(bus.map(0xfff, 2, device));
  EXPECT_FALSE(bus.map(0, 0x10000, device));
  EXPECT_FALSE(bus.map(0x5000, 0, device));
  EXPECT_FALSE(bus.map(~0ull, 2, device));
  EXPECT_TRUE(bus.map(0x2000, 1, device));
  EXPECT_TRUE(bus.map(0xfff, 1, device));
  EXPECT_TRUE(bus.map(~0ull, 1, device));
  std::array<std::byte, 1> data{};
  EXPECT_TRUE(bus.read(~0ull, data));
}

TEST(Bus, ADeviceMayMoveOthersFromInsideItsWrite) {
  Bus bus;
  Recorder mover, moved;
  ASSERT_TRUE(bus.map(0, 4, mover));
  ASSERT_TRUE(bus.map(0x100, 4, moved));
  mover.on_write = [&] {
    bus.unmap(0x100);
    EXPECT_TRUE(bus.map(0x200, 4, moved));
  };
  std::array<std::byte, 4> data{};
  EXPECT_TRUE(bus.write(0, data));
  EXPECT_FALSE(bus.read(0x100, data));
  EXPECT_TRUE(bus.read(0x200, data));
}

TEST(Bus, UnmapWaitsForTheAccessThatIsOnItsWay) {
  Bus bus;
  Recorder device;
  std::atomic<bool> inside{false}, leave{false}, unmapped{false};
  device.on_write = [&] {
    inside = true;
    inside.notify_all();
    leave.wait(false);
    EXPECT_FALSE(unmapped);
  };
  ASSERT_TRUE(bus.map(0, 4, device));
  std::thread writer{[&] {
    std::array<std::byte, 4> data{};
    bus.write(0, data);
  }};
  inside.wait(false);
  std::thread unmapper{[&] {
    bus.unmap(0);
    unmapped = true;
  }};
  // Once it is not found any more, the other thread is about to wait or waits already.
  std::array<std::byte, 4> data{};
  while (true) {
    Recorder other;
    if (bus.map(0, 4, other)) {
      EXPECT_TRUE(bus.read(0, data));
      break;
    }
  }
  leave = true;
  leave.notify_all();
  writer.join();
  unmapper.join();
  EXPECT_TRUE(unmapped);
}

}  // namespace

}  // namespace millrace::vmm

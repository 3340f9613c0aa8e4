#include "vmm/pci.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "vmm/pci_root.hpp"

namespace millrace::vmm {

namespace {

constexpr MemoryWindow high{0x8'0000'0000, 0x8'0000'0000};
constexpr std::uint64_t wide_size = 0x10000, small_size = 0x1000;

class Memory final : public BusDevice {
 public:
  void read(std::uint64_t, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{0x5a});
  }
  void write(std::uint64_t, std::span<const std::byte>) override {}
};

// BAR 0: 64 bits; BAR 2: 32 bits; a capability of which one byte may be changed.
class Function final : public PciFunction {
 public:
  explicit Function(std::vector<std::string>& events)
      : PciFunction{{.vendor = 0x1af4, .device = 0x1041, .class_code = 0x020000}}, events_{events} {
    add_memory_bar(0, wide_size, true, memory_);
    add_memory_bar(2, small_size, false, memory_);
    const std::array body{std::byte{1}, std::byte{2}, std::byte{3}};
    const std::array mask{std::byte{0}, std::byte{0xf0}, std::byte{0}};
    first = add_capability(9, body, mask);
    second = add_capability(0x11, body);
  }
  std::uint8_t first = 0, second = 0;

 private:
  void bar_mapped(unsigned index, std::uint64_t address) override {
    events_.push_back("+" + std::to_string(index) + "@" + std::to_string(address >> 12));
  }
  void bar_unmapped(unsigned index, std::uint64_t address) override {
    events_.push_back("-" + std::to_string(index) + "@" + std::to_string(address >> 12));
  }
  std::vector<std::string>& events_;
  Memory memory_;
};

class PciTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(root.start());
    ASSERT_TRUE(root.plug(3, std::make_unique<Function>(events)));
  }
  template <class T>
  T read(std::uint32_t offset, unsigned slot = 3) {
    T value{};
    memory.read(PciRoot::ecam_address + (slot << 15) + offset,
                std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  template <class T>
  void write(std::uint32_t offset, T value, unsigned slot = 3) {
    memory.write(PciRoot::ecam_address + (slot << 15) + offset,
                 std::as_bytes(std::span{&value, 1}));
  }
  template <class T>
  T in(std::uint16_t port) {
    T value{};
    ports.read(port, std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  template <class T>
  void out(std::uint16_t port, T value) {
    ports.write(port, std::as_bytes(std::span{&value, 1}));
  }
  [[nodiscard]] bool answers(std::uint64_t address) {
    std::uint8_t value = 0;
    return memory.read(address, std::as_writable_bytes(std::span{&value, 1})) && value == 0x5a;
  }

  Bus ports, memory;
  unsigned resets = 0;
  std::vector<std::string> events;
  PciRoot root{ports, memory, high, [this] { ++resets; }};
};

using Byte = std::uint8_t;
using Word = std::uint16_t;
using Double = std::uint32_t;
using Quad = std::uint64_t;

TEST_F(PciTest, BothWaysShowTheSameFunctions) {
  EXPECT_EQ(read<Double>(0), 0x1041'1af4u);
  EXPECT_EQ(read<Double>(0, 0), 0x0008'1b36u);
  EXPECT_EQ(read<Double>(0, 4), 0xffff'ffffu);
  EXPECT_EQ(read<Quad>(0, 4), ~0ull);
  EXPECT_EQ(in<Double>(0xcfc), 0xffff'ffffu);  // not enabled
  out<Double>(0xcf8, 0x8000'1800);
  EXPECT_EQ(in<Double>(0xcf8), 0x8000'1800u);
  EXPECT_EQ(in<Double>(0xcfc), 0x1041'1af4u);
  EXPECT_EQ(in<Word>(0xcfe), 0x1041u);
  EXPECT_EQ(in<Byte>(0xcfd), 0x1au);
  out<Double>(0xcf8, 0x8001'1800);  // bus 1
  EXPECT_EQ(in<Double>(0xcfc), 0xffff'ffffu);
  out<Double>(0xcf8, 0x8000'1900);  // function 1
  EXPECT_EQ(in<Double>(0xcfc), 0xffff'ffffu);
}

TEST_F(PciTest, TheResetPortLiesBesideAndOnlyItsBitResets) {
  out<Byte>(0xcf9, 2);
  out<Word>(0xcf8, 0x0600);
  EXPECT_EQ(resets, 0u);
  out<Byte>(0xcf9, 6);
  EXPECT_EQ(resets, 1u);
}

TEST_F(PciTest, BarsAreSizedAsTheStandardSays) {
  EXPECT_EQ(read<Quad>(0x10), (high.start + 3 * high.size / 32) | 0xc);
  write<Double>(0x10, 0xffff'ffff);
  write<Double>(0x14, 0xffff'ffff);
  EXPECT_EQ(read<Quad>(0x10), ~(wide_size - 1) | 0xc);
  write<Double>(0x18, 0xffff'ffff);
  EXPECT_EQ(read<Double>(0x18), 0xffff'f000u);
  write<Double>(0x1c, 0xffff'ffff);
  EXPECT_EQ(read<Double>(0x1c), 0u);  // there is no BAR 3
}

TEST_F(PciTest, ABarAnswersWhereItIsWhileMemoryIsEnabled) {
  const auto first = high.start + 3 * high.size / 32;
  EXPECT_FALSE(answers(first));
  write<Word>(4, 2);
  EXPECT_TRUE(answers(first));
  write<Quad>(0x10, high.start + wide_size);
  EXPECT_FALSE(answers(first));
  EXPECT_TRUE(answers(high.start + wide_size));
  EXPECT_TRUE(answers(high.start + wide_size + wide_size - 1));
  write<Word>(4, 0);
  EXPECT_FALSE(answers(high.start + wide_size));
  const auto page = [](Quad address) { return std::to_string(address >> 12); };
  const auto low = PciRoot::low_window.start + 3 * PciRoot::low_window.size / 32;
  EXPECT_EQ(events.front(), "+0@" + page(first));
  EXPECT_EQ(events[1], "+2@" + page(low));
  EXPECT_EQ(events[2], "-0@" + page(first));
  EXPECT_EQ(events.back(), "-2@" + page(low));
}

TEST_F(PciTest, ABarOnTopOfAnotherDeviceIsNowhere) {
  write<Word>(4, 2);
  write<Double>(0x18, static_cast<Double>(PciRoot::ecam_address));
  EXPECT_EQ(read<Double>(0), 0x1041'1af4u);  // configuration space is where it was
  write<Quad>(0x10, ~0ull);                  // as sizing does, with memory enabled
  write<Quad>(0x10, 0);
  EXPECT_FALSE(answers(0));
}

TEST_F(PciTest, OnlyTheBitsThatMayChangeDo) {
  write<Double>(0, 0xdead'beef);
  write<Word>(4, 0xffff);
  write<Double>(8, 0xffff'ffff);
  write<Byte>(0x34, 0xff);
  EXPECT_EQ(read<Double>(0), 0x1041'1af4u);
  EXPECT_EQ(read<Word>(4), 0x0406u);
  EXPECT_EQ(read<Double>(8), 0x0200'0000u);
  EXPECT_EQ(read<Byte>(0x34), 0x40u);
  // The body follows two bytes of header; of it, half of the second byte may change.
  EXPECT_EQ(read<Double>(0x40), 0x0201'4809u);
  write<Double>(0x40, 0xffff'ffff);
  EXPECT_EQ(read<Double>(0x40), 0xf201'4809u);
  EXPECT_EQ(read<Byte>(0x44), 3u);
  EXPECT_EQ(read<Byte>(0x49), 0u);  // the list ends
}

TEST_F(PciTest, AccessesThatCrossDoubleWordsAreSplit) {
  const auto base = PciRoot::ecam_address + (3u << 15);
  Quad value = 0;
  memory.read(base + 1, std::as_writable_bytes(std::span{&value, 1}));
  EXPECT_EQ(value & 0xff'ffff, 0x10411au);
  memory.read(base + 0xffd, std::as_writable_bytes(std::span{&value, 1}));  // into function 1
  EXPECT_EQ(value >> 24, ~0ull >> 24);
}

TEST_F(PciTest, SlotsAreRefusedWhereTheyAreNoneOrTaken) {
  EXPECT_FALSE(root.plug(0, std::make_unique<Function>(events)));
  EXPECT_FALSE(root.plug(3, std::make_unique<Function>(events)));
  EXPECT_FALSE(root.plug(32, std::make_unique<Function>(events)));
  write<Word>(4, 2);
  const auto gone = root.unplug(3);
  EXPECT_TRUE(gone);
  EXPECT_EQ(read<Double>(0), 0xffff'ffffu);
  EXPECT_FALSE(answers(high.start + 3 * high.size / 32));
  EXPECT_TRUE(root.plug(31, std::make_unique<Function>(events)));
  EXPECT_EQ(read<Double>(0, 31), 0x1041'1af4u);
}

}  // namespace

}  // namespace millrace::vmm

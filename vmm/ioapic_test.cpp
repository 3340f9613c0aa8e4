#include "vmm/ioapic.hpp"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace millrace::vmm {

namespace {

class Output final : public IoapicOutput {
 public:
  void send(const MsiMessage& message) override { sent.push_back(message); }
  void report_end(unsigned pin, const std::optional<MsiMessage>& message) override {
    if (message) {
      reported[pin] = *message;
    } else {
      reported.erase(pin);
    }
  }
  std::vector<MsiMessage> sent;
  std::map<unsigned, MsiMessage> reported;
};

class IoapicTest : public testing::Test {
 protected:
  std::uint32_t get(std::uint8_t at) {
    select(at);
    std::uint32_t value = 0;
    ioapic.read(0x10, std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  void set(std::uint8_t at, std::uint32_t value) {
    select(at);
    ioapic.write(0x10, std::as_bytes(std::span{&value, 1}));
  }
  void select(std::uint32_t at) { ioapic.write(0, std::as_bytes(std::span{&at, 1})); }
  void set_entry(unsigned pin, std::uint64_t entry) {
    set(static_cast<std::uint8_t>(0x11 + 2 * pin), static_cast<std::uint32_t>(entry >> 32));
    set(static_cast<std::uint8_t>(0x10 + 2 * pin), static_cast<std::uint32_t>(entry));
  }
  void pulse(unsigned pin) {
    ioapic.set_line(pin, true);
    ioapic.set_line(pin, false);
  }
  Output output;
  Ioapic ioapic{output};
};

constexpr std::uint64_t masked = 1 << 16, level = 1 << 15, remote_irr = 1 << 14;

TEST_F(IoapicTest, SaysWhatItIsAndBeginsMasked) {
  EXPECT_EQ(get(1), 0x0017'0011u);
  EXPECT_EQ(get(0x10 + 2 * 23), masked);
  pulse(4);
  EXPECT_TRUE(output.sent.empty());
}

TEST_F(IoapicTest, AnEdgeIsOneMessage) {
  set_entry(4, 3ull << 56 | 0x41);
  ioapic.set_line(4, true);
  ioapic.set_line(4, true);
  ASSERT_EQ(output.sent.size(), 1u);
  EXPECT_EQ(output.sent[0], (MsiMessage{0xfee0'3000, 0x41}));
  ioapic.set_line(4, false);
  ioapic.set_line(4, true);
  EXPECT_EQ(output.sent.size(), 2u);
}

TEST_F(IoapicTest, AnEdgeOfAMaskedPinComesWhenItIsUnmasked) {
  set_entry(3, masked | 0x30);
  pulse(3);
  pulse(3);
  EXPECT_TRUE(output.sent.empty());
  set_entry(3, 0x30);
  EXPECT_EQ(output.sent.size(), 1u);
}

TEST_F(IoapicTest, ALevelIsSentAgainAtTheEndWhileItIsHigh) {
  set_entry(10, level | 0x50);
  ASSERT_TRUE(output.reported.contains(10));
  EXPECT_EQ(output.reported[10].data, 0xc050u);
  ioapic.set_line(10, true);
  EXPECT_EQ(output.sent.size(), 1u);
  EXPECT_NE(get(0x10 + 20) & remote_irr, 0u);
  ioapic.end_of_interrupt(0x51);  // of another
  EXPECT_EQ(output.sent.size(), 1u);
  ioapic.end_of_interrupt(0x50);
  EXPECT_EQ(output.sent.size(), 2u);
  ioapic.set_line(10, false);
  ioapic.end_of_interrupt(0x50);
  EXPECT_EQ(output.sent.size(), 2u);
  EXPECT_EQ(get(0x10 + 20) & remote_irr, 0u);
  set_entry(10, level | masked | 0x50);
  EXPECT_FALSE(output.reported.contains(10));
}

TEST_F(IoapicTest, ReadOnlyBitsAndOddAccessesChangeNothing) {
  set_entry(0, masked | remote_irr | 1 << 12 | 0x20);
  EXPECT_EQ(get(0x10), masked | 0x20);
  const std::uint8_t byte = 0;
  select(0x10);
  ioapic.write(0x10, std::as_bytes(std::span{&byte, 1}));
  EXPECT_EQ(get(0x10), masked | 0x20);
  set(0x40, 0);  // behind the last entry
  set(0xff, 0);
  EXPECT_EQ(get(0x40), 0u);
  std::uint64_t wide = ~0ull;
  ioapic.read(0xff8, std::as_writable_bytes(std::span{&wide, 1}));
  EXPECT_EQ(wide, 0u);
}

}  // namespace

}  // namespace millrace::vmm

#include "vmm/msix.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "vmm/testing/fake_machine.hpp"

namespace millrace::vmm {
namespace {

using testing::FakeInterrupts;

constexpr std::uint16_t enable = Msix::control_enable, mask_all = Msix::control_mask;

struct Table {
  explicit Table(unsigned vectors = 3) : msix{std::move(*Msix::make(interrupts, vectors))} {}
  void write(std::uint64_t offset, std::uint32_t value) {
    msix->write(offset, std::as_bytes(std::span{&value, 1}));
  }
  std::uint32_t read(std::uint64_t offset) {
    std::uint32_t value = 0;
    msix->read(offset, std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  void unmask(unsigned vector, std::uint32_t data) {
    write(16 * vector, 0xfee0'1000);
    write(16 * vector + 4, 0);
    write(16 * vector + 8, data);
    write(16 * vector + 12, 0);
  }
  [[nodiscard]] std::uint64_t pending_at() const { return msix->bar_size() / 2; }

  FakeInterrupts interrupts;
  std::unique_ptr<Msix> msix;
};

TEST(Msix, CapabilityNamesTableAndPendingBits) {
  const Table table{3};
  const auto body = table.msix->capability(1);
  std::uint16_t control = 0;
  std::uint32_t table_at = 0, pending_at = 0;
  std::memcpy(&control, body.data(), 2);
  std::memcpy(&table_at, body.data() + 2, 4);
  std::memcpy(&pending_at, body.data() + 6, 4);
  EXPECT_EQ(control, 2);
  EXPECT_EQ(table_at, 1u);
  EXPECT_EQ(pending_at, 2048u | 1u);
  EXPECT_EQ(table.msix->bar_size(), 4096u);
  EXPECT_EQ(Table{300}.msix->bar_size(), 2u * 512 * 16);
}

TEST(Msix, StartsMaskedAndDisabled) {
  Table table;
  EXPECT_EQ(table.read(12), 1u);
  table.unmask(0, 7);
  EXPECT_FALSE(table.interrupts.vectors[0]->message());
  table.msix->set_control(enable);
  EXPECT_EQ(table.interrupts.vectors[0]->message(), (MsiMessage{0xfee0'1000, 7}));
  EXPECT_FALSE(table.interrupts.vectors[1]->message());
  table.msix->set_control(0);
  EXPECT_FALSE(table.interrupts.vectors[0]->message());
}

TEST(Msix, FunctionMaskHoldsAllVectors) {
  Table table;
  table.unmask(1, 5);
  table.msix->set_control(enable | mask_all);
  EXPECT_FALSE(table.interrupts.vectors[1]->message());
  table.msix->raise(1);
  EXPECT_EQ(table.read(table.pending_at()), 2u);
  table.msix->set_control(enable);
  EXPECT_EQ(table.read(table.pending_at()), 0u);
  EXPECT_TRUE(table.interrupts.vectors[1]->delivered());
}

TEST(Msix, MaskedVectorLatches) {
  Table table;
  table.unmask(2, 9);
  table.msix->set_control(enable);
  table.write(2 * 16 + 12, 1);
  table.msix->raise(2);
  EXPECT_FALSE(table.interrupts.vectors[2]->delivered());
  EXPECT_EQ(table.read(table.pending_at()), 4u);
  table.write(2 * 16 + 12, 0);
  EXPECT_TRUE(table.interrupts.vectors[2]->delivered());
  EXPECT_EQ(table.read(table.pending_at()), 0u);
}

TEST(Msix, ChangedMessageGoesElsewhere) {
  Table table;
  table.unmask(0, 1);
  table.msix->set_control(enable);
  table.write(8, 2);
  EXPECT_EQ(table.interrupts.vectors[0]->message()->data, 2u);
  const auto before = table.interrupts.vectors[0]->connects();
  table.write(8, 2);
  EXPECT_EQ(table.interrupts.vectors[0]->connects(), before) << "nothing changed";
  const std::uint64_t both = 0xfee0'2000;
  table.msix->write(0, std::as_bytes(std::span{&both, 1}));
  EXPECT_EQ(table.interrupts.vectors[0]->message()->address, 0xfee0'2000u);
}

TEST(Msix, TriesAgainAfterARefusedRoute) {
  Table table;
  table.interrupts.vectors[0]->refuse = true;
  table.unmask(0, 1);
  table.msix->set_control(enable);
  EXPECT_FALSE(table.interrupts.vectors[0]->message());
  table.interrupts.vectors[0]->refuse = false;
  table.write(12, 0);
  EXPECT_TRUE(table.interrupts.vectors[0]->message());
  table.interrupts.vectors[0]->refuse = true;
  table.write(8, 2);
  EXPECT_FALSE(table.interrupts.vectors[0]->message()) << "not to where it went before";
}

TEST(Msix, LacksVectorsWhereRoutesAreUsedUp) {
  FakeInterrupts interrupts;
  interrupts.vectors_max = 2;
  const auto made = Msix::make(interrupts, 3);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().message, "no interrupt route is left");
}

TEST(Msix, KeepsReservedBitsAndOddWritesOut) {
  Table table;
  table.write(0, 0xffff'ffff);
  EXPECT_EQ(table.read(0), 0xffff'fffcu);
  table.write(12, 0xffff'fffe);
  EXPECT_EQ(table.read(12), 0u);
  const std::uint16_t half = 0x1234;
  table.msix->write(8, std::as_bytes(std::span{&half, 1}));
  table.write(9, 0x55);
  EXPECT_EQ(table.read(8), 0u);
  table.write(table.pending_at(), ~0u);
  EXPECT_EQ(table.read(table.pending_at()), 0u);
  EXPECT_EQ(table.msix->eventfd(3), -1);
  table.msix->raise(0xffff);
}

TEST(Msix, SurvivesEveryAccess) {
  Table table{5};
  std::mt19937 random{7};
  for (int i = 0; i < 20'000; ++i) {
    const auto offset = random() % table.msix->bar_size();
    std::array<std::byte, 8> data{};
    for (auto& byte : data) byte = static_cast<std::byte>(random());
    const auto size = std::min<std::uint64_t>(1 + random() % 8, table.msix->bar_size() - offset);
    if (random() % 2 == 0) {
      table.msix->write(offset, std::span{data}.first(size));
    } else {
      table.msix->read(offset, std::span{data}.first(size));
    }
    if (random() % 16 == 0) table.msix->set_control(static_cast<std::uint16_t>(random()));
  }
  table.msix->set_control(0);
  for (const auto* vector : table.interrupts.vectors) EXPECT_FALSE(vector->message());
}

}  // namespace
}  // namespace millrace::vmm

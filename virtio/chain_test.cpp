#include "virtio/chain.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "virtio/chain_builder.hpp"
#include "virtio/testing/fake_driver.hpp"

namespace millrace::virtio {
namespace {

using base::le16;
using base::le32;
using base::le64;
using testing::FakeDriver;

constexpr std::uint16_t next_flag = wire::descriptor_next, write_flag = wire::descriptor_write,
                        indirect_flag = wire::descriptor_indirect;

// A descriptor table of our own; the walker is given it as a guest's.
class ChainBuilderTest : public ::testing::Test {
 protected:
  Fault walk(std::uint16_t head = 0, bool indirect = true) {
    ChainBuilder builder{*chain_, *driver_.memory(), hints_, indirect};
    const Fault fault =
        builder.walk_split(table_.data(), static_cast<std::uint32_t>(table_.size()), head);
    return fault == Fault::none ? builder.finish({head, 1, 0}) : fault;
  }
  static wire::Descriptor descriptor(std::uint64_t address, std::uint32_t length, unsigned flags,
                                     std::uint16_t next = 0) {
    return {le64{address}, le32{length}, le16{static_cast<std::uint16_t>(flags)}, le16{next}};
  }
  static constexpr std::uint64_t data = FakeDriver::data_address;
  static constexpr std::uint64_t border = data + (1u << 20);  // of two regions

  FakeDriver driver_{{.size = 8}};
  ChainHints hints_;
  std::unique_ptr<Chain> chain_ = std::make_unique<Chain>();
  std::vector<wire::Descriptor> table_ = std::vector<wire::Descriptor>(8);
};

TEST_F(ChainBuilderTest, ReadableThenWritable) {
  table_[3] = descriptor(data, 16, next_flag, 1);
  table_[1] = descriptor(data + 64, 32, next_flag | write_flag, 7);
  table_[7] = descriptor(data + 128, 1, write_flag);
  ASSERT_EQ(walk(3), Fault::none);
  ASSERT_EQ(chain_->readable().size(), 1u);
  ASSERT_EQ(chain_->writable().size(), 2u);
  EXPECT_EQ(chain_->readable_bytes(), 16u);
  EXPECT_EQ(chain_->writable_bytes(), 33u);
  EXPECT_EQ(chain_->writable()[1].guest_address, data + 128);
  EXPECT_EQ(chain_->ticket().id(), 3);
}

TEST_F(ChainBuilderTest, SplitsAtARegionBorder) {
  table_[0] = descriptor(border - 10, 30, 0);
  ASSERT_EQ(walk(), Fault::none);
  ASSERT_EQ(chain_->readable().size(), 2u);
  EXPECT_EQ(chain_->readable()[0].size, 10u);
  EXPECT_EQ(chain_->readable()[1].size, 20u);
  EXPECT_EQ(chain_->readable()[1].guest_address, border);
}

TEST_F(ChainBuilderTest, RefusesLoops) {
  table_[0] = descriptor(data, 0, next_flag, 0);
  EXPECT_EQ(walk(), Fault::chain_loop);
  table_[0] = descriptor(data, 1, next_flag, 1);
  table_[1] = descriptor(data, 1, next_flag, 0);
  EXPECT_EQ(walk(), Fault::chain_loop);
  for (std::uint16_t i = 0; i < 8; ++i) {
    table_[i] = descriptor(data, 0, next_flag, static_cast<std::uint16_t>((i + 1) % 8));
  }
  EXPECT_EQ(walk(5), Fault::chain_loop);
}

TEST_F(ChainBuilderTest, StopsAtTheLongestChain) {
  table_.assign(4096, {});
  for (std::uint16_t i = 0; i < 4096; ++i) {
    table_[i] = descriptor(data, 1, next_flag, static_cast<std::uint16_t>((i + 1) % 4096));
  }
  EXPECT_EQ(walk(), Fault::chain_too_long);
  table_[limits::chain_descriptors_max - 1] = descriptor(data, 1, 0);
  EXPECT_EQ(walk(), Fault::none);
  EXPECT_EQ(chain_->readable().size(), limits::chain_descriptors_max);
}

TEST_F(ChainBuilderTest, RefusesIndicesPastTheTable) {
  EXPECT_EQ(walk(8), Fault::head_out_of_range);
  EXPECT_EQ(walk(0xffff), Fault::head_out_of_range);
  table_[0] = descriptor(data, 1, next_flag, 8);
  EXPECT_EQ(walk(), Fault::head_out_of_range);
}

TEST_F(ChainBuilderTest, RefusesReadableAfterWritable) {
  table_[0] = descriptor(data, 1, next_flag | write_flag, 1);
  table_[1] = descriptor(data, 1, 0);
  EXPECT_EQ(walk(), Fault::chain_order);
  table_[0] = descriptor(data, 0, next_flag | write_flag, 1);  // also without a length
  EXPECT_EQ(walk(), Fault::chain_order);
}

TEST_F(ChainBuilderTest, ZeroLengthIsNoSegmentAndNeedsNoMemory) {
  table_[0] = descriptor(~0ull, 0, next_flag, 1);
  table_[1] = descriptor(data, 4, 0);
  ASSERT_EQ(walk(), Fault::none);
  EXPECT_EQ(chain_->readable().size(), 1u);
  table_[1] = descriptor(data, 0, write_flag);
  EXPECT_EQ(walk(), Fault::chain_empty);
}

TEST_F(ChainBuilderTest, RefusesBadAddresses) {
  table_[0] = descriptor(0, 1, 0);
  EXPECT_EQ(walk(), Fault::address_outside_memory);
  table_[0] = descriptor(data + (4u << 20) - 1, 2, 0);
  EXPECT_EQ(walk(), Fault::address_outside_memory);
  table_[0] = descriptor(~0ull, 2, 0);
  EXPECT_EQ(walk(), Fault::length_overflow);
  table_[0] = descriptor(~0ull - 3, 4, 0);  // ends exactly at 2^64
  EXPECT_EQ(walk(), Fault::address_outside_memory);
  table_[0] = descriptor(data, 0xffff'ffff, write_flag);
  EXPECT_EQ(walk(), Fault::length_overflow);
}

class IndirectTest : public ChainBuilderTest {
 protected:
  // Puts `entries` at `table` in guest memory and names them by descriptor 0.
  void indirect(std::uint64_t table, const std::vector<wire::Descriptor>& entries) {
    driver_.write(table, std::as_bytes(std::span{entries}));
    table_[0] = descriptor(table, static_cast<std::uint32_t>(entries.size() * 16), indirect_flag);
  }
};

TEST_F(IndirectTest, IsWalkedWhereverItLies) {
  for (const std::uint64_t table :
       {data + 4096, data + 4099, border - 16, border - 24, border - 1, border - 40}) {
    indirect(table, {descriptor(data, 5, next_flag, 2), descriptor(data, 7, write_flag),
                     descriptor(data + 9, 6, next_flag, 1)});
    ASSERT_EQ(walk(), Fault::none) << table - data;
    EXPECT_EQ(chain_->readable_bytes(), 11u);
    EXPECT_EQ(chain_->writable_bytes(), 7u);
  }
}

TEST_F(IndirectTest, MayFollowDirectDescriptorsAndIgnoresItsWriteFlag) {
  indirect(data + 4096, {descriptor(data, 5, 0)});
  table_[1] = table_[0];
  table_[1].flags = le16{indirect_flag | write_flag};
  table_[0] = descriptor(data, 3, next_flag, 1);
  ASSERT_EQ(walk(), Fault::none);
  EXPECT_EQ(chain_->readable_bytes(), 8u);
}

TEST_F(IndirectTest, RefusesBadTables) {
  const std::vector<wire::Descriptor> good{descriptor(data, 5, 0)};
  indirect(data + 4096, good);
  EXPECT_EQ(walk(0, false), Fault::indirect_bad);  // not negotiated
  for (const std::uint32_t length : {0u, 8u, 17u, 0xffff'ffffu}) {
    table_[0].length = le32{length};
    EXPECT_EQ(walk(), Fault::indirect_bad) << length;
  }
  indirect(data + 4096, good);
  table_[0].flags = le16{indirect_flag | next_flag};
  EXPECT_EQ(walk(), Fault::indirect_bad);
  indirect(data + 4096, {descriptor(data + 8192, 16, indirect_flag)});  // nested
  EXPECT_EQ(walk(), Fault::indirect_bad);
  indirect(data + 4096, {descriptor(data, 1, next_flag, 1)});  // next past it
  EXPECT_EQ(walk(), Fault::head_out_of_range);
  indirect(data + 4096, {descriptor(data, 1, next_flag, 0)});
  EXPECT_EQ(walk(), Fault::chain_loop);
  table_[0] = descriptor(data + (4u << 20) - 8, 16, indirect_flag);
  EXPECT_EQ(walk(), Fault::address_outside_memory);
  table_[0] = descriptor(~0ull - 15, 32, indirect_flag);
  EXPECT_EQ(walk(), Fault::length_overflow);
  table_[0] = descriptor(data, 0xffff'fff0, indirect_flag);  // huge, mostly outside: bounded anyway
  EXPECT_NE(walk(), Fault::none);
}

TEST_F(IndirectTest, PackedTableIsAllItsEntriesInOrder) {
  std::vector<wire::PackedDescriptor> entries{
      {le64{data}, le32{3}, le16{9}, le16{0}},
      {le64{data + 8}, le32{4}, le16{9}, le16{wire::descriptor_next}},
      {le64{data + 16}, le32{5}, le16{9}, le16{wire::descriptor_write}}};
  const auto walk_packed = [&](std::uint32_t bytes) {
    driver_.write(border - 20, std::as_bytes(std::span{entries}));
    ChainBuilder builder{*chain_, *driver_.memory(), hints_, true};
    return builder.add_packed({le64{border - 20}, le32{bytes}, le16{0}, le16{indirect_flag}});
  };
  EXPECT_EQ(walk_packed(48), Fault::none);
  EXPECT_EQ(chain_->readable_bytes(), 7u);
  EXPECT_EQ(chain_->writable_bytes(), 5u);
  EXPECT_EQ(walk_packed(0), Fault::indirect_bad);
  EXPECT_EQ(walk_packed(47), Fault::indirect_bad);
  entries[1].flags = le16{indirect_flag};
  EXPECT_EQ(walk_packed(48), Fault::indirect_bad);
  EXPECT_EQ(walk_packed(limits::chain_descriptors_max * 16 + 16), Fault::indirect_bad);
}

TEST(Copy, GoesAcrossSegmentsFromAnyOffset) {
  std::array<std::byte, 30> memory{};
  std::array<Segment, 3> segments{Segment{memory.data() + 20, 0, 7},
                                  Segment{memory.data() + 3, 0, 1},
                                  Segment{memory.data() + 10, 0, 5}};
  std::array<std::byte, 13> in, out;
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::byte>(i + 1);
  for (std::size_t offset = 0; offset <= 14; ++offset) {
    memory.fill({});
    const auto want = std::min<std::size_t>(13, 13 - offset * (offset <= 13) - 13 * (offset > 13));
    EXPECT_EQ(copy_to(segments, offset, in), want);
    out.fill({});
    EXPECT_EQ(copy_from(segments, offset, out), want);
    EXPECT_TRUE(
        std::equal(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(want), out.begin()));
    for (std::size_t i = want; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{});
  }
}

}  // namespace
}  // namespace millrace::virtio

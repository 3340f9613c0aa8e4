// parse(): every layout of a chain, every limit, every reason to refuse; RequestPool.
#include "blk/request.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "blk/in_flight.hpp"
#include "virtio/chain_builder.hpp"

namespace millrace::blk {
namespace {

namespace wire = virtio::wire;
using wire::BlkStatus;

constexpr std::uint64_t memory_bytes = 1 << 20;
constexpr std::uint64_t disk_sectors = 2048;

Rules rules() {
  Rules out;
  out.bytes = disk_sectors * 512;
  out.discard = out.write_zeroes = out.may_unmap = true;
  out.discard_ranges_max = out.zero_ranges_max = 2;
  out.discard_sectors_max = out.zero_sectors_max = 1024;
  return out;
}

class RequestTest : public ::testing::Test {
 protected:
  RequestTest() : mapping_{*base::Mapping::anonymous(memory_bytes)} {
    memory_ = *virtio::GuestMemory::build({{0, memory_bytes, 0, mapping_}});
  }
  // A chain of these readable and writable pieces, one behind the other from address 0 with a gap
  // of one byte between them. `in` is put into the readable ones.
  const virtio::Chain& chain(const std::vector<std::byte>& in,
                             const std::vector<std::uint32_t>& readable,
                             const std::vector<std::uint32_t>& writable) {
    virtio::ChainHints hints;
    virtio::ChainBuilder builder{*chain_, *memory_, hints, false};
    std::uint64_t at = 0;
    std::size_t taken = 0;
    const auto add = [&](std::uint32_t size, std::uint16_t flags) {
      wire::PackedDescriptor descriptor{};
      descriptor.address = base::le64{at};
      descriptor.length = base::le32{size};
      descriptor.flags = base::le16{flags};
      EXPECT_EQ(builder.add_packed(descriptor), virtio::Fault::none);
    };
    for (const std::uint32_t size : readable) {
      const std::size_t bytes = std::min<std::size_t>(size, in.size() - taken);
      std::memcpy(mapping_->data() + at, in.data() + taken, bytes);
      taken += bytes;
      add(size, 0);
      at += size + 1;
    }
    for (const std::uint32_t size : writable) {
      add(size, wire::descriptor_write);
      at += size + 1;
      status_at_ = at - 2;
    }
    EXPECT_EQ(builder.finish(virtio::Ticket{7, 1, 0}), virtio::Fault::none);
    return *chain_;
  }
  Parsed parse_it(const Rules& with, const virtio::Chain& what) {
    return parse(what, with, ranges_);
  }
  static std::vector<std::byte> header(std::uint32_t type, std::uint64_t sector) {
    wire::BlkHeader out{};
    out.type = base::le32{type};
    out.sector = base::le64{sector};
    std::vector<std::byte> bytes(sizeof out);
    std::memcpy(bytes.data(), &out, sizeof out);
    return bytes;
  }
  static std::vector<std::byte> with_ranges(std::uint32_t type,
                                            const std::vector<wire::BlkRange>& ranges) {
    auto bytes = header(type, 0);
    for (const auto& range : ranges) {
      const auto raw = std::as_bytes(std::span{&range, 1});
      bytes.insert(bytes.end(), raw.begin(), raw.end());
    }
    return bytes;
  }
  static wire::BlkRange range(std::uint64_t sector, std::uint32_t sectors,
                              std::uint32_t flags = 0) {
    return {base::le64{sector}, base::le32{sectors}, base::le32{flags}};
  }
  BlkStatus refused(const Rules& with, const virtio::Chain& what) {
    const Parsed parsed = parse_it(with, what);
    const auto* const reject = std::get_if<Reject>(&parsed);
    EXPECT_NE(reject, nullptr);
    return reject == nullptr ? BlkStatus::ok : reject->why;
  }
  BlkStatus refused_ranges(std::uint32_t type, const std::vector<wire::BlkRange>& ranges,
                           std::uint32_t extra = 0) {
    const auto bytes = with_ranges(type, ranges);
    return refused(rules(), chain(bytes, {static_cast<std::uint32_t>(bytes.size()) + extra}, {1}));
  }

  std::shared_ptr<const base::Mapping> mapping_;
  std::shared_ptr<const virtio::GuestMemory> memory_;
  std::unique_ptr<virtio::Chain> chain_ = std::make_unique<virtio::Chain>();
  std::array<Range, 2> ranges_;
  std::uint64_t status_at_ = 0;
};

TEST_F(RequestTest, FindsTheHeaderAndTheStatusInAnyLayout) {
  const std::vector<std::uint32_t> bytewise(16, 1);
  const std::vector<std::vector<std::uint32_t>> headers = {{16}, {8, 8}, {1, 14, 1}, bytewise};
  const std::vector<std::vector<std::uint32_t>> tails = {
      {4096, 1}, {4097}, {1, 4095, 1}, {4000, 97}, {512, 3584, 1}};
  for (const auto& head : headers) {
    for (const auto& tail : tails) {
      const Parsed parsed = parse_it(rules(), chain(header(0, 9), head, tail));
      const auto* const request = std::get_if<Request>(&parsed);
      ASSERT_NE(request, nullptr);
      EXPECT_EQ(request->operation, Operation::read);
      EXPECT_EQ(request->offset, 9u * 512);
      EXPECT_EQ(request->length, 4096u);
      EXPECT_EQ(request->status.guest_address, status_at_);
      EXPECT_EQ(request->status.at, mapping_->data() + status_at_);
      EXPECT_EQ(request->ticket.id(), 7);
    }
  }
}

TEST_F(RequestTest, HeaderAndDataMayShareADescriptor) {
  const Parsed parsed = parse_it(rules(), chain(header(1, 0), {16 + 512, 511, 1}, {3, 2}));
  const auto* const request = std::get_if<Request>(&parsed);
  ASSERT_NE(request, nullptr);
  EXPECT_EQ(request->operation, Operation::write);
  EXPECT_EQ(request->length, 1024u);
  EXPECT_EQ(request->status.guest_address, status_at_);  // the last of five writable bytes
}

TEST_F(RequestTest, OnlyAChainWithoutHeaderOrStatusIsMalformed) {
  EXPECT_TRUE(std::holds_alternative<Malformed>(parse_it(rules(), chain(header(0, 0), {15}, {1}))));
  EXPECT_TRUE(std::holds_alternative<Malformed>(parse_it(rules(), chain(header(4, 0), {16}, {}))));
  EXPECT_TRUE(std::holds_alternative<Malformed>(parse_it(rules(), chain({}, {}, {513}))));
}

TEST_F(RequestTest, ChecksTheRangeWithoutOverflow) {
  const auto read = [&](std::uint64_t sector, std::uint32_t bytes) -> const virtio::Chain& {
    return chain(header(0, sector), {16}, {bytes, 1});
  };
  EXPECT_TRUE(std::holds_alternative<Request>(parse_it(rules(), read(disk_sectors - 1, 512))));
  EXPECT_EQ(refused(rules(), read(disk_sectors - 1, 1024)), BlkStatus::io_error);
  EXPECT_EQ(refused(rules(), read(disk_sectors, 512)), BlkStatus::io_error);
  EXPECT_EQ(refused(rules(), read(~0ull, 512)), BlkStatus::io_error);
  EXPECT_EQ(refused(rules(), read(1ull << 55, 512)), BlkStatus::io_error);  // * 512 wraps to 0
  EXPECT_EQ(refused(rules(), read((1ull << 55) - 1, 1024)), BlkStatus::io_error);
  EXPECT_EQ(refused(rules(), read(0, 511)), BlkStatus::io_error);
  EXPECT_EQ(refused(rules(), read(0, 513)), BlkStatus::io_error);
  const Parsed nothing = parse_it(rules(), chain(header(0, 0), {16}, {1}));
  ASSERT_TRUE(std::holds_alternative<Request>(nothing));
  EXPECT_EQ(std::get<Request>(nothing).length, 0u);
}

TEST_F(RequestTest, KeepsToTheBlockSize) {
  Rules big = rules();
  big.block_size = 4096;
  EXPECT_TRUE(std::holds_alternative<Request>(parse_it(big, chain(header(0, 8), {16}, {4097}))));
  EXPECT_EQ(refused(big, chain(header(0, 1), {16}, {4097})), BlkStatus::io_error);
  EXPECT_EQ(refused(big, chain(header(0, 8), {16}, {513})), BlkStatus::io_error);
}

TEST_F(RequestTest, UnknownTypesAreUnsupported) {
  for (const std::uint32_t type :
       {2u, 3u, 5u, 9u, 10u, 12u, 14u, 16u, 0x80000000u, 0x80000001u, 0xffffffffu}) {
    EXPECT_EQ(refused(rules(), chain(header(type, 0), {16}, {513})), BlkStatus::unsupported)
        << type;
  }
}

TEST_F(RequestTest, AReadonlyDiskTakesNoChange) {
  Rules readonly = rules();
  readonly.readonly = true;
  readonly.discard = readonly.write_zeroes = false;
  EXPECT_EQ(refused(readonly, chain(header(1, 0), {16, 512}, {1})), BlkStatus::io_error);
  for (const std::uint32_t type : {11u, 13u}) {
    const auto bytes = with_ranges(type, {range(0, 1)});
    EXPECT_EQ(refused(readonly, chain(bytes, {32}, {1})), BlkStatus::io_error);
  }
  EXPECT_TRUE(
      std::holds_alternative<Request>(parse_it(readonly, chain(header(0, 0), {16}, {513}))));
  EXPECT_TRUE(std::holds_alternative<Request>(parse_it(readonly, chain(header(4, 0), {16}, {1}))));
}

TEST_F(RequestTest, RefusesRangesAsTheSpecificationSays) {
  for (const std::uint32_t type : {11u, 13u}) {
    EXPECT_EQ(refused_ranges(type, {range(0, 1), range(8, 1), range(16, 1)}),
              BlkStatus::unsupported);  // more than advertised
    EXPECT_EQ(refused_ranges(type, {range(0, 0xffffffff)}), BlkStatus::io_error);
    EXPECT_EQ(refused_ranges(type, {range(0, 1025)}), BlkStatus::io_error);
    EXPECT_EQ(refused_ranges(type, {range(disk_sectors, 1)}), BlkStatus::io_error);
    EXPECT_EQ(refused_ranges(type, {range(~0ull, 2)}), BlkStatus::io_error);
    EXPECT_EQ(refused_ranges(type, {range(0, 1), range(disk_sectors - 1, 2)}), BlkStatus::io_error);
    EXPECT_EQ(refused_ranges(type, {}), BlkStatus::io_error);
    EXPECT_EQ(refused_ranges(type, {range(0, 1)}, 1), BlkStatus::io_error);  // 17 bytes
    for (unsigned bit = 1; bit < 32; ++bit) {
      EXPECT_EQ(refused_ranges(type, {range(0, 1, 1u << bit)}), BlkStatus::unsupported) << bit;
    }
  }
  EXPECT_EQ(refused_ranges(11, {range(0, 1, 1)}), BlkStatus::unsupported);
  Rules without = rules();
  without.discard = false;
  EXPECT_EQ(refused(without, chain(with_ranges(11, {range(0, 1)}), {32}, {1})),
            BlkStatus::unsupported);
}

TEST_F(RequestTest, CopiesTheRangesAndUnmapsOnlyWhereAllMay) {
  const auto parse_zeroes = [&](const std::vector<wire::BlkRange>& ranges) {
    const auto bytes = with_ranges(13, ranges);
    const std::vector<std::uint32_t> bytewise(bytes.size(), 1);
    const Parsed parsed = parse_it(rules(), chain(bytes, bytewise, {1}));
    EXPECT_TRUE(std::holds_alternative<Request>(parsed));
    return std::get<Request>(parsed);
  };
  const Request both = parse_zeroes({range(1, 2, 1), range(disk_sectors, 0, 1)});
  EXPECT_TRUE(both.unmap);
  ASSERT_EQ(both.ranges.size(), 2u);
  EXPECT_EQ(both.ranges[0].offset, 512u);
  EXPECT_EQ(both.ranges[0].length, 1024u);
  EXPECT_EQ(both.ranges[1].length, 0u);
  EXPECT_FALSE(parse_zeroes({range(1, 2, 1), range(8, 1, 0)}).unmap);
}

TEST_F(RequestTest, PoolKeepsOrderAndNoticesOldMemory) {
  RequestPool pool{2, 4, 2};
  Request request;
  request.length = 4096;
  const virtio::Chain& read = chain(header(0, 0), {16}, {1000, 3097});
  InFlight* const first = pool.begin(request, read, *memory_, false, false, 10);
  InFlight* const second = pool.begin(request, read, *memory_, false, false, 20);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(pool.exhausted());
  EXPECT_EQ(pool.oldest(), first);
  EXPECT_EQ(first->vector_count, 2u);
  EXPECT_EQ(first->vectors[1].iov_len, 3096u);  // without the status byte
  const auto other = *virtio::GuestMemory::build({{0, memory_bytes, 0, mapping_}});
  EXPECT_FALSE(pool.uses_other_than(*memory_));
  EXPECT_TRUE(pool.uses_other_than(*other));
  pool.end(*first);
  EXPECT_EQ(pool.oldest(), second);
  pool.end(*second);
  EXPECT_EQ(pool.oldest(), nullptr);
  EXPECT_EQ(pool.in_flight(), 0u);
  EXPECT_FALSE(pool.uses_other_than(*other));
}

TEST_F(RequestTest, PoolRefusesWhatIsTooScattered) {
  RequestPool pool{1, 4, 2};
  Request request;
  request.length = 5;
  EXPECT_EQ(
      pool.begin(request, chain(header(0, 0), {16}, {1, 1, 1, 1, 1, 1}), *memory_, false, false, 1),
      nullptr);
  EXPECT_EQ(pool.in_flight(), 0u);
  EXPECT_FALSE(pool.exhausted());
}

TEST(Io, AdvanceLeavesTheVectorsAsTheyWere) {
  std::array<std::byte, 100> memory;
  std::array<iovec, 3> vectors{iovec{memory.data(), 10}, iovec{memory.data() + 20, 30},
                               iovec{memory.data() + 60, 40}};
  const auto before = vectors;
  Io io;
  io.length = 80;
  io.vectors = vectors.data();
  io.vector_count = 3;
  for (const unsigned step : {3u, 7u, 1u, 28u, 1u, 39u}) io.advance(step);
  EXPECT_EQ(io.length, 1u);
  EXPECT_EQ(io.transferred, 79u);
  EXPECT_EQ(io.left().size(), 1u);
  EXPECT_EQ(io.left().front().iov_len, 1u);
  io.advance(1);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(vectors[i].iov_base, before[i].iov_base);
    EXPECT_EQ(vectors[i].iov_len, before[i].iov_len);
  }
}

}  // namespace
}  // namespace millrace::blk

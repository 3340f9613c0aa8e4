// Byte order, results, counters, histograms and units: the types without a system call.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "base/clock.hpp"
#include "base/counter.hpp"
#include "base/endian.hpp"
#include "base/error.hpp"
#include "base/hex.hpp"
#include "base/histogram.hpp"
#include "base/mac.hpp"
#include "base/units.hpp"

namespace millrace::base {
namespace {

TEST(Endian, StoresTheOrderThatItsNameSays) {
  const be32 big{0x01020304u};
  const le32 little{0x01020304u};
  const unsigned char big_bytes[] = {1, 2, 3, 4};
  const unsigned char little_bytes[] = {4, 3, 2, 1};
  EXPECT_EQ(std::memcmp(&big, big_bytes, 4), 0);
  EXPECT_EQ(std::memcmp(&little, little_bytes, 4), 0);
  EXPECT_EQ(big.host(), 0x01020304u);
  EXPECT_EQ(little.host(), 0x01020304u);
}

TEST(Endian, SwapsEveryWidth) {
  EXPECT_EQ(byte_swap(std::uint8_t{0xab}), 0xab);
  EXPECT_EQ(byte_swap(std::uint16_t{0x0102}), 0x0201);
  EXPECT_EQ(byte_swap(0x01020304u), 0x04030201u);
  EXPECT_EQ(byte_swap(std::uint64_t{0x0102030405060708}), 0x0807060504030201u);
  static_assert(be16{0x1234}.host() == 0x1234);
  static_assert(sizeof(le64) == 8 && std::is_trivially_copyable_v<le64>);
}

TEST(ResultTest, HoldsAValueOrTheReason) {
  const Result<int> good{7};
  ASSERT_TRUE(good);
  EXPECT_EQ(*good, 7);
  const Result<int> bad = fail("no bread");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().message, "no bread");
  const Result<> nothing;
  EXPECT_TRUE(nothing);
  const Result<> worse = fail("no butter");
  EXPECT_EQ(worse.error().message, "no butter");
}

TEST(ResultTest, MovesItsValueOut) {
  Result<std::unique_ptr<int>> held{std::make_unique<int>(3)};
  const std::unique_ptr<int> taken = *std::move(held);
  EXPECT_EQ(*taken, 3);
}

TEST(ResultTest, CarriesACodeInsteadOfALine) {
  enum class Code { red, green };
  const Result<int, Code> result = Unexpected{Code::green};
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error(), Code::green);
}

TEST(ResultDeathTest, StopsWhereTheValueIsNotThere) {
  const Result<int> bad = fail("nothing");
  EXPECT_DEATH(static_cast<void>(*bad), "our own fault");
}

TEST(ErrorTest, NamesTheReasonOfTheSystem) {
  errno = ENOENT;
  const Result<> result = fail_errno("cannot open x");
  EXPECT_EQ(result.error().message, "cannot open x: No such file or directory");
}

TEST(CounterTest, Counts) {
  Counter counter;
  counter.add();
  counter.add(4);
  EXPECT_EQ(counter.get(), 5u);
  counter.set(1);
  EXPECT_EQ(counter.get(), 1u);
}

template <class H>
void every_value_lies_in_its_bucket() {
  for (unsigned bit = 0; bit < 39; ++bit) {
    for (const std::int64_t off : {-1, 0, 1}) {
      const auto value = static_cast<std::uint64_t>(static_cast<std::int64_t>(1ull << bit) + off);
      const auto at = H::index(value);
      ASSERT_LT(at, H::buckets);
      EXPECT_LE(H::lower_bound(at), value);
      EXPECT_GT(H::lower_bound(at + 1), value);
    }
  }
  EXPECT_EQ(H::index(std::numeric_limits<std::uint64_t>::max()), H::buckets - 1);
}

TEST(HistogramTest, EveryValueLiesInItsBucket) {
  every_value_lies_in_its_bucket<Histogram>();
  every_value_lies_in_its_bucket<FineHistogram>();
}

template <class H>
void buckets_are_contiguous_and_narrow() {
  constexpr auto sharp = 1u << H::sub_bits;  // below it every value has a bucket of its own
  for (unsigned at = 0; at + 1 < H::buckets; ++at) {
    const auto low = H::lower_bound(at);
    const auto next = H::lower_bound(at + 1);
    ASSERT_LT(low, next);
    EXPECT_EQ(H::index(low), at);
    EXPECT_EQ(H::index(next - 1), at);
    if (low >= sharp) {
      EXPECT_LE(static_cast<double>(next - low), static_cast<double>(low) / sharp);
    }
  }
}

TEST(HistogramTest, BucketsAreContiguousAndNarrow) {
  buckets_are_contiguous_and_narrow<Histogram>();
  buckets_are_contiguous_and_narrow<FineHistogram>();
}

TEST(HistogramTest, QuantilesAreRightWithinABucket) {
  Histogram histogram;
  EXPECT_EQ(Histogram::quantile(histogram.snapshot(), 0.5), 0u);
  for (std::uint64_t ns = 1; ns <= 10'000; ++ns) histogram.add(ns);
  const auto counts = histogram.snapshot();
  for (const double q : {0.1, 0.5, 0.9, 0.99}) {
    const double got = static_cast<double>(Histogram::quantile(counts, q));
    EXPECT_NEAR(got, q * 10'000, 0.125 * q * 10'000) << q;
  }
  Histogram single;
  single.add(100);
  EXPECT_GE(Histogram::quantile(single.snapshot(), 0.0), 96u);
  EXPECT_LE(Histogram::quantile(single.snapshot(), 1.0), 103u);
}

TEST(UnitsTest, ReadsSizes) {
  EXPECT_EQ(*parse_size("0"), 0u);
  EXPECT_EQ(*parse_size("4096"), 4096u);
  EXPECT_EQ(*parse_size("512B"), 512u);
  EXPECT_EQ(*parse_size("64KiB"), 65536u);
  EXPECT_EQ(*parse_size("64k"), 65536u);
  EXPECT_EQ(*parse_size("1GiB"), 1ull << 30);
  EXPECT_EQ(*parse_size("1 GiB"), 1ull << 30);
  EXPECT_EQ(*parse_size("2tib"), 2ull << 40);
  EXPECT_EQ(*parse_size("3MB"), 3'000'000u);
  EXPECT_EQ(*parse_size("18446744073709551615"), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(*parse_size("16383P"), 16383ull << 50);
}

TEST(UnitsTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "GiB", "-1", "+1", "1.5GiB", "1 G iB", "1GiB ", " 1", "1XiB", "0x10",
                           "1  G", "18446744073709551616", "16384P", "99999999999T"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size) << text;
    EXPECT_NE(size.error().message.find(text), std::string::npos);
  }
}

TEST(UnitsTest, WritesBytesAndRates) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(1ull << 30), "1.00 GiB");
  EXPECT_EQ(format_bytes(100ull << 20), "100 MiB");
  EXPECT_EQ(format_bytes((1ull << 20) - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(std::numeric_limits<std::uint64_t>::max()), "16.0 EiB");
  EXPECT_EQ(format_rate(0, "pps"), "0 pps");
  EXPECT_EQ(format_rate(7, "pps"), "7 pps");
  EXPECT_EQ(format_rate(0.25, "pps"), "0.25 pps");
  EXPECT_EQ(format_rate(13.6e6, "pps"), "13.6 Mpps");
  EXPECT_EQ(format_rate(999'600, "IOPS"), "1.00 MIOPS");
}

TEST(HexTest, WritesAddresses) {
  EXPECT_EQ(format_hex(0), "0x0");
  EXPECT_EQ(format_hex(0xe000'0000), "0xe0000000");
  EXPECT_EQ(format_hex(std::numeric_limits<std::uint64_t>::max()), "0xffffffffffffffff");
}

TEST(MacTest, ReadsWhatItWritesAndNothingElse) {
  const Mac mac{0x52, 0x54, 0x00, 0x0a, 0xbc, 0xff};
  EXPECT_EQ(format_mac(mac), "52:54:00:0a:bc:ff");
  EXPECT_EQ(parse_mac("52:54:00:0a:bc:ff"), mac);
  EXPECT_EQ(parse_mac("52:54:00:0A:BC:FF"), mac);
  for (const auto* const wrong :
       {"", "52:54:00:0a:bc", "52:54:00:0a:bc:ff:", "52:54:00:0a:bc:f", "52-54-00-0a-bc-ff",
        "52:54:00:0a:bc:fg", "5:254:00:0a:bc:ff", " 2:54:00:0a:bc:ff", "+2:54:00:0a:bc:ff"}) {
    EXPECT_EQ(parse_mac(wrong), std::nullopt) << wrong;
  }
}

TEST(ClockTest, ConvertsBothWaysAndAgreesWithTheSystem) {
  EXPECT_GT(cycles_per_second(), 1e8);
  const double back = static_cast<double>(cycles_to_ns(ns_to_cycles(1'000'000'000)));
  EXPECT_NEAR(back, 1e9, 10);
  EXPECT_EQ(cycles_to_ns(0), 0u);
  EXPECT_GT(ns_to_cycles(std::numeric_limits<std::uint64_t>::max()), 1ull << 62);
  const auto before = monotonic_ns();
  EXPECT_GE(monotonic_ns(), before);
}

}  // namespace
}  // namespace millrace::base

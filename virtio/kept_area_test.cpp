#include "virtio/kept_area.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace millrace::virtio {
namespace {

using Record = std::vector<std::byte>;

Record record_of(unsigned value, std::size_t size = 1000) {
  return Record(size, static_cast<std::byte>(value));
}

struct Memory {
  std::shared_ptr<const base::Mapping> mapping =
      base::Mapping::anonymous(KeptArea::size + 64).value();
  // As another process finds it.
  [[nodiscard]] Record found() const { return KeptArea{mapping, 64}.load(); }
  [[nodiscard]] std::byte* bytes() const { return mapping->data() + 64; }
};

TEST(KeptArea, HoldsTheLastRecord) {
  const Memory memory;
  EXPECT_TRUE(memory.found().empty());
  KeptArea area{memory.mapping, 64};
  for (unsigned i = 1; i < 10; ++i) {
    area.store(record_of(i, 100 * i));
    EXPECT_EQ(memory.found(), record_of(i, 100 * i));
  }
  area.store(record_of(1, KeptArea::record_max));
  EXPECT_EQ(memory.found(), record_of(1, KeptArea::record_max));
  area.store({});
  EXPECT_TRUE(memory.found().empty());
}

TEST(KeptArea, AnotherProcessGoesOn) {
  const Memory memory;
  KeptArea{memory.mapping, 64}.store(record_of(1));
  for (unsigned i = 2; i < 8; ++i) {
    KeptArea next{memory.mapping, 64};
    EXPECT_EQ(next.load(), record_of(i - 1));
    next.store(record_of(i));
  }
  EXPECT_EQ(memory.found(), record_of(7));
}

// A store is memory that changes byte after byte. Wherever it ends, one of the two is there.
TEST(KeptArea, AStoreMayEndAnywhere) {
  const Memory memory;
  KeptArea area{memory.mapping, 64};
  area.store(record_of(1, 80));
  area.store(record_of(2, 80));
  const Record before(memory.bytes(), memory.bytes() + KeptArea::size);
  area.store(record_of(3, 80));
  const Record after(memory.bytes(), memory.bytes() + KeptArea::size);
  // Its first half: the header goes, the record comes. Its second half: the header comes.
  for (std::size_t cut = 0; cut < 200; ++cut) {
    Record now = before;
    const std::size_t at = KeptArea::slot_size;
    std::fill_n(now.begin() + at, std::min<std::size_t>(cut, 32), std::byte{0});
    if (cut > 32) {
      std::copy_n(after.begin() + at + 32, std::min<std::size_t>(cut - 32, 80),
                  now.begin() + at + 32);
    }
    if (cut > 112) {
      std::copy_n(after.begin() + at, std::min<std::size_t>(cut - 112, 32), now.begin() + at);
    }
    std::memcpy(memory.bytes(), now.data(), now.size());
    const Record found = memory.found();
    EXPECT_TRUE(found == record_of(2, 80) || found == record_of(3, 80)) << cut;
    if (cut >= 144) {
      EXPECT_EQ(found, record_of(3, 80));
    }
  }
}

TEST(KeptArea, NonsenseIsNoRecord) {
  const Memory memory;
  KeptArea{memory.mapping, 64}.store(record_of(1, 40));
  const Record good(memory.bytes(), memory.bytes() + KeptArea::size);
  for (std::size_t at = KeptArea::slot_size; at < KeptArea::slot_size + 32 + 40; ++at) {
    std::memcpy(memory.bytes(), good.data(), good.size());
    memory.bytes()[at] ^= std::byte{0x40};
    EXPECT_TRUE(memory.found().empty()) << at;
  }
  std::memset(memory.bytes(), 0xff, KeptArea::size);
  EXPECT_TRUE(memory.found().empty());
}

}  // namespace
}  // namespace millrace::virtio

#include "vmm/vmcoreinfo.hpp"

#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>

namespace millrace::vmm {
namespace {

std::vector<std::byte> note_of(const std::string& text) {
  const Elf64_Nhdr header{11, static_cast<std::uint32_t>(text.size()), 0};
  std::vector<std::byte> out(24 + (text.size() + 3) / 4 * 4);
  std::memcpy(out.data(), &header, sizeof header);
  std::memcpy(out.data() + 12, "VMCOREINFO", 11);
  std::memcpy(out.data() + 24, text.data(), text.size());
  return out;
}

// A kernel whose own page table lies there: at 0x100'0000 of its text, which begins at `base`.
std::vector<std::byte> note_at(std::int64_t base) {
  return note_of("OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff81000000\nNUMBER(phys_base)=" +
                 std::to_string(base) + "\n");
}

TEST(Vmcoreinfo, IsCopiedWholeAndBounded) {
  auto bytes = note_of("OSRELEASE=6.1.0-56-cloud-amd64\nX=1\n");
  const auto whole = bytes;
  bytes.resize(bytes.size() + 100, std::byte{7});
  EXPECT_TRUE(begins_vmcoreinfo(bytes));
  EXPECT_EQ(vmcoreinfo_of(bytes), whole);
  const auto largest = note_of("OSRELEASE=" + std::string(4086, 'x'));
  EXPECT_EQ(largest.size(), vmcoreinfo_size_max);
  EXPECT_EQ(vmcoreinfo_of(largest), largest);
  EXPECT_TRUE(vmcoreinfo_of(note_of("OSRELEASE=" + std::string(4087, 'x'))).empty());
}

TEST(Vmcoreinfo, WhatIsCutOrOfAnotherKindIsNone) {
  const auto whole = note_of("OSRELEASE=6.1.0\n");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(vmcoreinfo_of(std::span{whole}.first(size)).empty()) << size;
  }
  for (const std::size_t at : {0u, 5u, 8u, 12u, 22u, 24u, 33u}) {
    auto other = whole;
    other[at] ^= std::byte{1};
    other[7] = std::byte{at == 5 ? std::uint8_t{0x80} : std::uint8_t{0}};  // a size far too large
    EXPECT_FALSE(begins_vmcoreinfo(other)) << at;
  }
}

class ChoiceOfNotes : public ::testing::Test {
 protected:
  ChoiceOfNotes() {
    // 511 * 8 of each table. A processor marks what it used, and a table is its process's own.
    words_[0x100'0ff8] = 0x5063;
    words_[0x500'0ff8] = 0x7063;
    words_[0x1234'5ff8] = 0x7043;
  }
  std::vector<std::byte> choose(const std::vector<std::vector<std::byte>>& notes,
                                std::uint64_t cr3) {
    std::vector<CpuState> cpus(2);
    cpus[0].cr[3] = 0xdead'0000;  // there is no such memory
    cpus[1].cr[3] = cr3;
    return choose_vmcoreinfo(notes, cpus, [this](std::uint64_t at) -> std::optional<std::uint64_t> {
      const auto found = words_.find(at);
      return found == words_.end() ? std::nullopt : std::optional{found->second};
    });
  }

  std::map<std::uint64_t, std::uint64_t> words_;
  const std::vector<std::byte> old_ = note_at(0), running_ = note_at(0x400'0000);
};

TEST_F(ChoiceOfNotes, TheKernelThatRunsAndNotTheOneBefore) {
  EXPECT_EQ(choose({old_, running_}, 0x1234'5001), running_);
  EXPECT_EQ(choose({running_, old_}, 0x1234'5001), running_);
  words_[0x1234'5ff8] = 0x5063;
  EXPECT_EQ(choose({old_, running_}, 0x1234'5001), old_);
}

TEST_F(ChoiceOfNotes, TheOnlyOneWhereNothingElseTells) {
  EXPECT_EQ(choose({running_}, 0x9000), running_);
  EXPECT_TRUE(choose({running_, old_}, 0x9000).empty());
  EXPECT_TRUE(choose({}, 0x1234'5000).empty());
  const auto mute = note_of("OSRELEASE=6.1.0\nNUMBER(phys_base)=x\n");
  EXPECT_EQ(choose({mute}, 0x1234'5000), mute);
  EXPECT_EQ(choose({mute, running_}, 0x1234'5000), running_);
}

// phys_base is below zero where KASLR moved the addresses further than the memory.
TEST_F(ChoiceOfNotes, AKernelThatLiesLowerThanItsAddresses) {
  const auto low = note_at(-0x80'0000);
  words_[0x80'0ff8] = 0x7063;
  EXPECT_EQ(choose({old_, low}, 0x1234'5000), low);
}

}  // namespace
}  // namespace millrace::vmm

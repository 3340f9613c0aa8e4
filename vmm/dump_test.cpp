#include "vmm/dump.hpp"

#include <elf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/stat.h>
#include <sys/user.h>

#include <cstring>
#include <filesystem>
#include <future>

namespace millrace::vmm {
namespace {

template <class T>
T at(const std::vector<std::byte>& bytes, std::size_t offset) {
  T value{};
  EXPECT_LE(offset + sizeof value, bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

TEST(DumpLayout, IsACoreFileOfPhysicalMemory) {
  const std::vector<RamRegion> regions{{0, 0x20'0000, nullptr, 0},
                                       {0x1'0000'0000, 0x10'0000, nullptr, 0x20'0000}};
  std::vector<CpuState> cpus(2);
  cpus[1].rip = 0xffff'ffff'8100'0000;
  cpus[1].r15 = 15;
  cpus[1].cr[3] = 0x3000;
  cpus[1].cs = {.selector = 0x10, .limit = 0xffff'ffff, .flags = 0xa09b00, .base = 0};
  cpus[1].kernel_gs_base = 0x1234;
  const auto layout = lay_out_dump(regions, cpus);

  const auto header = at<Elf64_Ehdr>(layout.head, 0);
  EXPECT_EQ(std::memcmp(header.e_ident, ELFMAG, SELFMAG), 0);
  EXPECT_EQ(header.e_type, ET_CORE);
  EXPECT_EQ(header.e_machine, EM_X86_64);
  ASSERT_EQ(header.e_phnum, 3);
  const auto segment = [&](std::size_t i) {
    return at<Elf64_Phdr>(layout.head, header.e_phoff + i * header.e_phentsize);
  };
  const auto notes = segment(0);
  EXPECT_EQ(notes.p_type, static_cast<unsigned>(PT_NOTE));
  EXPECT_EQ(notes.p_offset + notes.p_filesz, layout.head.size());
  for (std::size_t i = 0; i < 2; ++i) {
    const auto load = segment(i + 1);
    EXPECT_EQ(load.p_type, static_cast<unsigned>(PT_LOAD));
    EXPECT_EQ(load.p_paddr, regions[i].guest_address);
    EXPECT_EQ(load.p_filesz, regions[i].size);
    EXPECT_EQ(load.p_memsz, regions[i].size);
    EXPECT_EQ(load.p_offset, layout.file_offsets[i]);
    EXPECT_EQ(load.p_offset % 4096, 0u);
    EXPECT_GE(load.p_offset, layout.head.size());
  }
  EXPECT_EQ(layout.file_offsets[1], layout.file_offsets[0] + regions[0].size);
  EXPECT_EQ(layout.file_size, layout.file_offsets[1] + regions[1].size);

  // CORE notes: a header of 12, a name of 5 in 8, the status.
  constexpr std::size_t core_note = 12 + 8 + sizeof(elf_prstatus), qemu_note = 12 + 8 + 440;
  EXPECT_EQ(notes.p_filesz, 2 * (core_note + qemu_note));
  const auto second = notes.p_offset + core_note;
  const auto note = at<Elf64_Nhdr>(layout.head, second);
  EXPECT_EQ(note.n_type, static_cast<unsigned>(NT_PRSTATUS));
  const auto status = at<elf_prstatus>(layout.head, second + 20);
  EXPECT_EQ(status.pr_pid, 2);
  user_regs_struct registers{};
  std::memcpy(&registers, &status.pr_reg, sizeof registers);
  EXPECT_EQ(registers.rip, cpus[1].rip);
  EXPECT_EQ(registers.r15, 15u);
  EXPECT_EQ(registers.cs, 0x10u);
  // The places where crash looks, in QEMU's own note.
  const auto qemu = notes.p_offset + 2 * core_note + qemu_note;
  EXPECT_EQ(std::memcmp(layout.head.data() + qemu + 12, "QEMU", 5), 0);
  EXPECT_EQ(at<std::uint32_t>(layout.head, qemu + 20), 1u);    // version
  EXPECT_EQ(at<std::uint32_t>(layout.head, qemu + 24), 440u);  // size
  EXPECT_EQ(at<std::uint64_t>(layout.head, qemu + 20 + 8 + 16 * 8), cpus[1].rip);
  EXPECT_EQ(at<std::uint32_t>(layout.head, qemu + 20 + 8 + 18 * 8), 0x10u);  // cs
  EXPECT_EQ(at<std::uint32_t>(layout.head, qemu + 20 + 8 + 18 * 8 + 8), 0xa09b00u);
  EXPECT_EQ(at<std::uint64_t>(layout.head, qemu + 20 + 392 + 3 * 8), 0x3000u);  // cr3
  EXPECT_EQ(at<std::uint64_t>(layout.head, qemu + 20 + 432), 0x1234u);
}

class DumpTest : public ::testing::Test {
 protected:
  DumpTest() : ram_{*GuestRam::make({.bytes = 64 << 20, .bytes_most = 192 << 20, .slots = 1})} {
    std::string pattern = (std::filesystem::temp_directory_path() / "mr-dump-XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
  }
  ~DumpTest() override { std::filesystem::remove_all(directory_); }

  base::Fd open(int flags) {
    return base::Fd{::open((directory_ + "/core").c_str(), flags | O_CREAT | O_CLOEXEC, 0600)};
  }
  // Writes one to its end. The line that is wrong.
  std::string write(base::Fd file) {
    std::promise<void> done;
    auto dump =
        Dump::begin(ram_, std::vector<CpuState>(1), std::move(file), [&done] { done.set_value(); });
    if (!dump) return dump.error().message;
    done.get_future().wait();
    (*dump)->stop();
    completed_ = (*dump)->completed();
    total_ = (*dump)->total();
    return (*dump)->error();
  }

  std::string directory_;
  GuestRam ram_;
  std::uint64_t completed_ = 0, total_ = 0;
};

TEST_F(DumpTest, HoldsMemoryThatWasAdded) {
  auto piece = ram_.make_piece(128 << 20);
  ASSERT_TRUE(piece) << piece.error().message;
  ram_.add(*std::move(piece), [] {});
  constexpr std::uint64_t place = 0x456'7890;
  constexpr char text[] = "in what was added";
  std::memcpy(ram_.regions().back().host + place, text, sizeof text);
  ASSERT_EQ(write(open(O_RDWR)), "");
  EXPECT_EQ(total_, 192u << 20);
  const auto layout = lay_out_dump(ram_.regions(), std::vector<CpuState>(1));
  ASSERT_EQ(layout.file_offsets.size(), 2u);
  char got[sizeof text];
  const auto offset = static_cast<off_t>(layout.file_offsets[1] + place);
  ASSERT_EQ(::pread(open(O_RDONLY).get(), got, sizeof got, offset),
            static_cast<ssize_t>(sizeof got));
  EXPECT_STREQ(got, text);
}

TEST_F(DumpTest, HoldsWhatTheGuestWroteAndHolesElsewhere) {
  const std::string text = "the guest wrote this";
  constexpr std::uint64_t place = 0x123'4567;
  std::memcpy(ram_.at(place, text.size()).data(), text.data(), text.size());
  std::memset(ram_.at(0x200'0000, 0x1000).data(), 0, 0x1000);  // touched, and yet zeros
  const auto file = open(O_RDWR);
  ASSERT_EQ(::pwrite(file.get(), "old", 3, 40 << 20), 3);
  ASSERT_EQ(write(open(O_WRONLY)), "");
  EXPECT_EQ(total_, 64u << 20);
  EXPECT_EQ(completed_, total_);

  const auto layout = lay_out_dump(ram_.regions(), std::vector<CpuState>(1));
  struct stat status {};
  ASSERT_EQ(::fstat(file.get(), &status), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), layout.file_size);
  EXPECT_LT(status.st_blocks * 512, 1 << 20) << "no holes";
  std::string found(text.size(), '\0');
  const auto offset = static_cast<off_t>(layout.file_offsets[0] + place);
  ASSERT_EQ(::pread(file.get(), found.data(), found.size(), offset),
            static_cast<ssize_t>(found.size()));
  EXPECT_EQ(found, text);
  std::vector<std::byte> head(layout.head.size());
  ASSERT_EQ(::pread(file.get(), head.data(), head.size(), 0), static_cast<ssize_t>(head.size()));
  EXPECT_EQ(head, layout.head);
  char old[3] = {1, 1, 1};
  ASSERT_EQ(::pread(file.get(), old, 3, 40 << 20), 3);
  EXPECT_EQ(std::string(old, 3), std::string(3, '\0')) << "what was in the file before";
}

// A kernel's note lies at the beginning of some page, and reaches into the next piece that is read.
TEST_F(DumpTest, HoldsTheNoteOfTheKernelAmongItsOwn) {
  constexpr std::uint64_t place = 0x123'f000;
  const std::string text = "OSRELEASE=6.1.0\n" + std::string(4080, 'x');
  const Elf64_Nhdr header{11, static_cast<std::uint32_t>(text.size()), 0};
  const auto memory = ram_.at(place, 24 + text.size());
  std::memcpy(memory.data(), &header, sizeof header);
  std::memcpy(memory.data() + 12, "VMCOREINFO", 11);
  std::memcpy(memory.data() + 24, text.data(), text.size());
  // Not at the beginning of a page: somebody's copy.
  std::memcpy(ram_.at(0x200'0010, 64).data(), memory.data(), 64);
  ASSERT_EQ(write(open(O_RDWR)), "");

  const auto layout = lay_out_dump(ram_.regions(), std::vector<CpuState>(1));
  std::vector<std::byte> got(layout.file_offsets[0]);
  const auto file = open(O_RDONLY);
  ASSERT_EQ(::pread(file.get(), got.data(), got.size(), 0), static_cast<ssize_t>(got.size()));
  const auto notes = at<Elf64_Phdr>(got, at<Elf64_Ehdr>(got, 0).e_phoff);
  EXPECT_EQ(notes.p_filesz, notes.p_memsz);
  ASSERT_EQ(notes.p_offset + notes.p_filesz, layout.head.size() + memory.size());
  EXPECT_EQ(std::memcmp(got.data() + layout.head.size(), memory.data(), memory.size()), 0);
}

TEST_F(DumpTest, LookingAtMemoryDoesNotMakeIt) {
  struct stat before {
  }, after{};
  ram_.at(0, 1)[0] = std::byte{1};
  ASSERT_EQ(::fstat(ram_.file().get(), &before), 0);
  ASSERT_EQ(write(open(O_WRONLY)), "");
  ASSERT_EQ(::fstat(ram_.file().get(), &after), 0);
  EXPECT_EQ(before.st_blocks, after.st_blocks);
}

TEST_F(DumpTest, WhatIsNoPlaceForADumpIsRefused) {
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const base::Fd reader{ends[0]};
  EXPECT_NE(write(base::Fd{ends[1]}).find("regular file"), std::string::npos);
  std::ignore = open(O_WRONLY);
  EXPECT_NE(write(open(O_RDONLY)).find("not open for writing"), std::string::npos);
  EXPECT_NE(write(open(O_WRONLY | O_APPEND)).find("open for appending"), std::string::npos);
}

TEST_F(DumpTest, AFileThatMayNotGrowIsOneLineAndNothingIsLeft) {
  const base::Fd sealed{::memfd_create("core", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  ASSERT_EQ(::fcntl(sealed.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  ram_.at(0, 1)[0] = std::byte{1};
  const auto line = write(base::Fd{::dup(sealed.get())});
  EXPECT_NE(line.find("cannot write the dump, after"), std::string::npos) << line;
  struct stat status {};
  ASSERT_EQ(::fstat(sealed.get(), &status), 0);
  EXPECT_EQ(status.st_size, 0);
}

TEST_F(DumpTest, GivenUpLeavesNothing) {
  for (auto& byte : ram_.at(0, 32 << 20)) byte = std::byte{1};
  auto dump = Dump::begin(ram_, std::vector<CpuState>(1), open(O_WRONLY), [] {});
  ASSERT_TRUE(dump) << dump.error().message;
  dump->reset();
  const auto size = std::filesystem::file_size(directory_ + "/core");
  const auto whole = lay_out_dump(ram_.regions(), std::vector<CpuState>(1)).file_size;
  EXPECT_TRUE(size == 0 || size == whole) << size;
}

}  // namespace
}  // namespace millrace::vmm

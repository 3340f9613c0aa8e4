#include "vmm/boot.hpp"

#include <elf.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "vmm/platform.hpp"

namespace millrace::vmm {

namespace {

constexpr std::uint64_t mebibyte = 1 << 20;

class BootTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / "millrace-boot-XXXXXX";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    auto made = make_acpi({1, {1ull << 35, 1ull << 35}});
    ASSERT_TRUE(made);
    acpi = *made;
    auto memory = GuestRam::make({.bytes = 128 * mebibyte});
    ASSERT_TRUE(memory);
    ram.emplace(*std::move(memory));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& name, const std::string& bytes) {
    const auto path = folder_ + "/" + name;
    std::ofstream{path, std::ios::binary} << bytes;
    return path;
  }
  // The line that it says, or what it loaded.
  std::string line(const std::string& kernel, const std::string& initrd = {},
                   const std::string& command_line = {}) {
    auto state = boot({kernel, initrd, command_line}, acpi, *ram);
    if (!state) return state.error().message;
    entry = *state;
    return "ok";
  }
  template <class T>
  T at(std::uint64_t address) {
    const auto bytes = ram->at(address, sizeof(T));
    EXPECT_EQ(bytes.size(), sizeof(T)) << address;
    T value{};
    if (bytes.size() == sizeof(T)) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  void expect_line(const std::string& got, const std::string& piece) {
    EXPECT_NE(got.find(piece), std::string::npos) << got;
    EXPECT_EQ(got.find('\n'), std::string::npos) << got;
  }

  AcpiImage acpi;
  std::optional<GuestRam> ram;
  EntryState entry;

 private:
  std::string folder_;
};

template <class T>
void put(std::string& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

// A bzImage as far as a loader looks: header, four set-up sectors, a payload.
std::string bzimage(std::size_t payload = 4096) {
  std::string bytes(5 * 512 + payload, '\0');
  put<std::uint8_t>(bytes, 0x1f1, 4);
  put<std::uint16_t>(bytes, 0x1fe, 0xaa55);
  put<std::uint16_t>(bytes, 0x200, 0x66eb);
  put<std::uint32_t>(bytes, 0x202, 0x53726448);
  put<std::uint16_t>(bytes, 0x206, 0x020f);
  put<std::uint8_t>(bytes, 0x211, 1);
  put<std::uint32_t>(bytes, 0x22c, 0x7fff'ffff);
  put<std::uint16_t>(bytes, 0x236, 0x7f);
  put<std::uint32_t>(bytes, 0x238, 2047);
  put<std::uint64_t>(bytes, 0x258, 16 * mebibyte);
  put<std::uint32_t>(bytes, 0x260, 32 * mebibyte);
  put<std::uint64_t>(bytes, 5 * 512 + 0x200, 0x1122'3344'5566'7788);
  return bytes;
}

std::string elf(std::uint64_t address, bool with_note) {
  std::string bytes(0x2000, '\0');
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 2;
  header.e_entry = address + 0x10;
  put(bytes, 0, header);
  Elf64_Phdr load{};
  load.p_type = PT_LOAD;
  load.p_offset = 0x1000;
  load.p_paddr = address;
  load.p_filesz = 0x800;
  load.p_memsz = 0x3000;
  put(bytes, sizeof header, load);
  Elf64_Phdr note{};
  note.p_type = with_note ? PT_NOTE : PT_NULL;
  note.p_offset = 0x200;
  note.p_filesz = 20;
  put(bytes, sizeof header + sizeof load, note);
  put(bytes, 0x200, Elf64_Nhdr{4, 4, 18});
  std::memcpy(bytes.data() + 0x20c, "Xen", 4);
  put<std::uint32_t>(bytes, 0x210, 0x1234'5000);
  put<std::uint32_t>(bytes, 0x1000, 0xfeed'face);
  return bytes;
}

TEST_F(BootTest, ABzimageGoesWhereItWantsWithWhatItIsTold) {
  const std::string initrd(10000, 'i');
  ASSERT_EQ(line(file("k", bzimage()), file("i", initrd), "console=ttyS0 quiet"), "ok");
  EXPECT_EQ(entry.mode, EntryMode::long_mode);
  EXPECT_EQ(entry.instruction, 16 * mebibyte + 0x200);
  EXPECT_EQ(at<std::uint64_t>(entry.instruction), 0x1122'3344'5566'7788u);
  const auto page = entry.argument;
  EXPECT_EQ(at<std::uint32_t>(page + 0x202), 0x53726448u);
  EXPECT_EQ(at<std::uint8_t>(page + 0x210), 0xff);
  EXPECT_EQ(at<std::uint64_t>(page + 0x70), acpi.address);
  EXPECT_EQ(at<std::uint64_t>(acpi.address), 0x2052'5450'2044'5352u);
  const auto address = at<std::uint32_t>(page + 0x218);
  EXPECT_EQ(at<std::uint32_t>(page + 0x21c), initrd.size());
  EXPECT_EQ(address % 4096, 0u);
  EXPECT_GE(address, 48 * mebibyte);
  EXPECT_EQ(at<char>(address + initrd.size() - 1), 'i');
  const auto text = at<std::array<char, 20>>(at<std::uint32_t>(page + 0x228));
  EXPECT_STREQ(text.data(), "console=ttyS0 quiet");
  // The memory map: low memory, a reserved part, the rest, ECAM.
  EXPECT_EQ(at<std::uint8_t>(page + 0x1e8), 4);
  EXPECT_EQ(at<std::uint64_t>(page + 0x2d0 + 2 * 20), mebibyte);
  EXPECT_EQ(at<std::uint64_t>(page + 0x2d0 + 2 * 20 + 8), 127 * mebibyte);
  // A seed that is not all zero.
  const auto seed = at<std::uint64_t>(page + 0x250);
  EXPECT_EQ(at<std::uint32_t>(seed + 8), 9u);
  EXPECT_NE(at<std::uint64_t>(seed + 16) | at<std::uint64_t>(seed + 24), 0u);
  // The identity map: the last of its 2 MiB pages.
  EXPECT_EQ(at<std::uint64_t>(entry.page_table + 6 * 4096 - 8), 0xffe0'0083u);
}

TEST_F(BootTest, AnElfIsEnteredByItsNoteOrAtItsEntry) {
  ASSERT_EQ(line(file("k", elf(2 * mebibyte, true)), file("i", "initrd"), "x"), "ok");
  EXPECT_EQ(entry.mode, EntryMode::protected_mode);
  EXPECT_EQ(entry.instruction, 0x1234'5000u);
  EXPECT_EQ(at<std::uint32_t>(entry.argument), 0x336e'c578u);
  EXPECT_EQ(at<std::uint64_t>(entry.argument + 32), acpi.address);
  EXPECT_EQ(at<std::uint32_t>(entry.argument + 48), 4u);
  const auto module = at<std::uint64_t>(entry.argument + 16);
  EXPECT_EQ(at<std::uint64_t>(module + 8), 6u);
  EXPECT_EQ(at<char>(at<std::uint64_t>(module)), 'i');
  EXPECT_EQ(at<std::uint32_t>(2 * mebibyte), 0xfeed'faceu);
  ASSERT_EQ(line(file("k", elf(2 * mebibyte, false))), "ok");
  EXPECT_EQ(entry.mode, EntryMode::long_mode);
  EXPECT_EQ(entry.instruction, 2 * mebibyte + 0x10);
}

TEST_F(BootTest, WhatIsKeptOpenBootsWhateverBecomesOfThePaths) {
  BootConfig config{file("k", elf(2 * mebibyte, true)), file("i", "initrd"), "x"};
  ASSERT_TRUE(keep_open(config));
  std::filesystem::remove(config.kernel);
  std::filesystem::remove(config.initrd);
  file("i", "another");
  for (int start = 0; start < 2; ++start) {
    const auto state = boot(config, acpi, *ram);
    ASSERT_TRUE(state) << state.error().message;
    const auto module = at<std::uint64_t>(state->argument + 16);
    EXPECT_EQ(at<std::uint64_t>(module + 8), 6u);
    EXPECT_EQ(at<char>(at<std::uint64_t>(module)), 'i');
  }
  BootConfig absent{"/nowhere/vmlinuz", {}, {}};
  const auto refused = keep_open(absent);
  ASSERT_FALSE(refused);
  expect_line(refused.error().message, "cannot open the kernel /nowhere/vmlinuz");
}

TEST_F(BootTest, WhatIsNoKernelIsOneClearLine) {
  expect_line(line("/nowhere/vmlinuz"), "cannot open the kernel /nowhere/vmlinuz");
  expect_line(line("/dev/zero"), "is no regular file");
  expect_line(line("/tmp"), "is no regular file");
  expect_line(line(file("k", "")), "is no kernel");
  expect_line(line(file("k", std::string(100000, 'x'))), "is no kernel");
  expect_line(line(file("k", bzimage().substr(0, 0x240))), "cut short");
  expect_line(line(file("k", bzimage().substr(0, 2600))), "cut short");
  auto old = bzimage();
  put<std::uint16_t>(old, 0x206, 0x0204);
  expect_line(line(file("k", old)), "no 64-bit entry");
  auto narrow = bzimage();
  put<std::uint16_t>(narrow, 0x236, 0);
  expect_line(line(file("k", narrow)), "no 64-bit entry");
  for (const std::uint64_t address : {std::uint64_t{0}, 127 * mebibyte, ~std::uint64_t{0}}) {
    auto far = bzimage();
    put(far, 0x258, address);
    expect_line(line(file("k", far)), "give it more memory");
  }
}

TEST_F(BootTest, WhatIsNoProgramIsOneClearLine) {
  expect_line(line(file("k", elf(0, false))), "no memory that it can have");
  expect_line(line(file("k", elf(1ull << 60, false))), "no memory that it can have");
  expect_line(line(file("k", elf(2 * mebibyte, false).substr(0, 0x1200))), "cut short");
  expect_line(line(file("k", elf(2 * mebibyte, false).substr(0, 30))), "cut short");
  auto other = elf(2 * mebibyte, false);
  put<std::uint16_t>(other, offsetof(Elf64_Ehdr, e_machine), EM_AARCH64);
  expect_line(line(file("k", other)), "no program for x86-64");
  auto many = elf(2 * mebibyte, false);
  put<std::uint16_t>(many, offsetof(Elf64_Ehdr, e_phnum), 60000);
  expect_line(line(file("k", many)), "60000 ELF segments");
  auto nothing = elf(2 * mebibyte, false);
  put<std::uint32_t>(nothing, sizeof(Elf64_Ehdr), PT_NULL);
  expect_line(line(file("k", nothing)), "nothing to load");
  // A note whose sizes lie is passed over.
  auto lying = elf(2 * mebibyte, true);
  put(lying, 0x200, Elf64_Nhdr{0xffff'ffff, 0xffff'ffff, 18});
  EXPECT_EQ(line(file("k", lying)), "ok");
  EXPECT_EQ(entry.mode, EntryMode::long_mode);
}

TEST_F(BootTest, AnInitrdOrCommandLineThatDoesNotFitIsOneClearLine) {
  const auto kernel = file("k", bzimage());
  expect_line(line(kernel, "/nowhere/initrd"), "cannot open the initrd /nowhere/initrd");
  expect_line(line(kernel, file("i", "")), "is empty");
  const auto large = file("i", "x");
  ASSERT_EQ(::truncate(large.c_str(), 81 * mebibyte), 0);
  expect_line(line(kernel, large), "give the guest more memory");
  ASSERT_EQ(::truncate(large.c_str(), 80 * mebibyte), 0);
  EXPECT_EQ(line(kernel, large), "ok");
  expect_line(line(kernel, {}, std::string(2048, 'x')), "this kernel takes 2047");
  expect_line(line(kernel, {}, std::string("a\0b", 3)), "zero byte");
}

TEST(GuestRam, IsASealedFileOnBothSidesOfTheHole) {
  auto ram = GuestRam::make({.bytes = 4ull << 30});
  ASSERT_TRUE(ram) << ram.error().message;
  ASSERT_EQ(ram->regions().size(), 2u);
  EXPECT_EQ(ram->regions()[1].guest_address, 1ull << 32);
  EXPECT_EQ(ram->regions()[1].size, 1ull << 30);
  EXPECT_EQ(ram->at(0xbfff'ffff, 1).size(), 1u);
  EXPECT_TRUE(ram->at(0xbfff'ffff, 2).empty());
  EXPECT_TRUE(ram->at(0xc000'0000, 1).empty());
  EXPECT_TRUE(ram->at(0xffff'ffff, 2).empty());
  EXPECT_TRUE(ram->at(~0ull, 2).empty());
  EXPECT_TRUE(ram->at(1ull << 32, ~0ull).empty());
  ASSERT_EQ(ram->at((5ull << 30) - 1, 1).size(), 1u);
  ram->at((5ull << 30) - 1, 1)[0] = std::byte{7};
  std::uint8_t value = 0;
  EXPECT_EQ(::pread(ram->file().get(), &value, 1, (4ll << 30) - 1), 1);
  EXPECT_EQ(value, 7);
  EXPECT_NE(::ftruncate(ram->file().get(), 0), 0);
  EXPECT_FALSE(GuestRam::make({.bytes = 1}));
  EXPECT_FALSE(GuestRam::make({.bytes = (64ull << 20) + 4096}));
  EXPECT_FALSE(GuestRam::make({.bytes = 64ull << 20, .page_size = 4096}));
  EXPECT_FALSE(GuestRam::make({.bytes = 64ull << 20, .numa_node = 5000}));
}

}  // namespace

}  // namespace millrace::vmm

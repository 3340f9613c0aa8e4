#include "vmm/acpi.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "vmm/aml.hpp"

namespace millrace::vmm {

namespace {

constexpr MemoryWindow window{0x8'0000'0000, 0x10'0000'0000};

AcpiImage image_of(unsigned cpus) {
  auto image = make_acpi({cpus, window});
  EXPECT_TRUE(image);
  return *image;
}

template <class T>
T field(const std::string& bytes, std::size_t at) {
  T value{};
  EXPECT_LE(at + sizeof value, bytes.size());
  if (at + sizeof value <= bytes.size()) std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

unsigned sum(const std::string& bytes) {
  return std::accumulate(
             bytes.begin(), bytes.end(), 0u,
             [](unsigned total, char byte) { return total + static_cast<unsigned char>(byte); }) &
         0xff;
}

std::string table_at(const AcpiImage& image, std::uint64_t address) {
  const auto at = address - image.address;
  return image.bytes.substr(at, field<std::uint32_t>(image.bytes, at + 4));
}

// The table that the XSDT lists under that signature.
std::string table_of(const AcpiImage& image, const std::string& signature) {
  const auto xsdt = table_at(image, field<std::uint64_t>(image.bytes, 24));
  for (std::size_t at = 36; at + 8 <= xsdt.size(); at += 8) {
    const auto table = table_at(image, field<std::uint64_t>(xsdt, at));
    if (table.starts_with(signature)) return table;
  }
  return {};
}

TEST(Acpi, EveryTableIsFoundAndSumsToZero) {
  const auto image = image_of(64);
  EXPECT_EQ(image.address, 0xe'0000u);
  EXPECT_EQ(image.bytes.substr(0, 8), "RSD PTR ");
  EXPECT_EQ(sum(image.bytes.substr(0, 20)), 0u);
  EXPECT_EQ(sum(image.bytes.substr(0, 36)), 0u);
  EXPECT_EQ(sum(table_at(image, field<std::uint64_t>(image.bytes, 24))), 0u);
  for (const auto* const signature : {"FACP", "APIC", "MCFG"}) {
    const auto table = table_of(image, signature);
    ASSERT_FALSE(table.empty()) << signature;
    EXPECT_EQ(sum(table), 0u) << signature;
  }
  const auto fadt = table_of(image, "FACP");
  const auto dsdt = table_at(image, field<std::uint64_t>(fadt, 140));
  EXPECT_EQ(dsdt.substr(0, 4), "DSDT");
  EXPECT_EQ(sum(dsdt), 0u);
}

TEST(Acpi, TheBusesThatAreThereAndNoMore) {
  for (const unsigned buses : {1u, 9u, 65u}) {
    const auto image = make_acpi({1, window, buses});
    ASSERT_TRUE(image);
    const auto mcfg = table_of(*image, "MCFG");
    EXPECT_EQ(field<std::uint64_t>(mcfg, 44), PciRoot::ecam_address);
    EXPECT_EQ(field<std::uint8_t>(mcfg, 54), 0);          // the first
    EXPECT_EQ(field<std::uint8_t>(mcfg, 55), buses - 1);  // the last
    // _CRS: a fixed range of memory for ECAM, and a word range of bus numbers.
    const auto dsdt = make_dsdt_body({1, window, buses});
    const std::uint32_t start = PciRoot::ecam_address, size = buses << 20;
    std::string ecam(8, '\0');
    std::memcpy(ecam.data(), &start, 4);
    std::memcpy(ecam.data() + 4, &size, 4);
    EXPECT_NE(dsdt.find(ecam), std::string::npos);
  }
}

TEST(Acpi, TheFadtIsHardwareReducedAndSparesProbes) {
  const auto fadt = table_of(image_of(1), "FACP");
  EXPECT_EQ(fadt.size(), 276u);
  EXPECT_EQ(field<std::uint16_t>(fadt, 109), 0x34);          // no VGA, no ASPM, no clock, no 8042
  EXPECT_EQ(field<std::uint32_t>(fadt, 112) >> 20 & 1, 1u);  // hardware-reduced
  EXPECT_EQ(field<std::uint32_t>(fadt, 112) >> 10 & 1, 1u);  // the reset register works
  EXPECT_EQ(field<std::uint64_t>(fadt, 120), 0xcf9u);
  EXPECT_EQ(field<std::uint8_t>(fadt, 128), 6);
  EXPECT_EQ(field<std::uint64_t>(fadt, 248), 0x600u);
  EXPECT_EQ(field<std::uint64_t>(fadt, 260), 0x601u);
}

TEST(Acpi, TheMadtListsEveryVcpu) {
  const auto madt = table_of(image_of(5), "APIC");
  unsigned processors = 0, pins = 0;
  for (std::size_t at = 44; at + 2 <= madt.size(); at += field<std::uint8_t>(madt, at + 1)) {
    ASSERT_GT(field<std::uint8_t>(madt, at + 1), 1);
    if (field<std::uint8_t>(madt, at) == 0) {
      EXPECT_EQ(field<std::uint8_t>(madt, at + 3), processors++);
    }
    if (field<std::uint8_t>(madt, at) == 1) ++pins;
  }
  EXPECT_EQ(processors, 5u);
  EXPECT_EQ(pins, 1u);
}

TEST(Aml, EncodesAsTheSpecificationSays) {
  using namespace std::string_literals;
  EXPECT_EQ(aml::integer(0), "\x00"s);
  EXPECT_EQ(aml::integer(0x1234), "\x0b\x34\x12"s);
  EXPECT_EQ(aml::integer(1ull << 40), "\x0e\0\0\0\0\0\x01\0\0"s);
  EXPECT_EQ(aml::eisa_id("PNP0A08"), "\x0c\x41\xd0\x0a\x08"s);
  EXPECT_EQ(aml::path("\\_SB.PWRB"), "\\\x2e_SB_PWRB"s);
  EXPECT_EQ(aml::name("_S5", aml::package({aml::integer(5)})), "\x08_S5_\x12\x04\x01\x0a\x05"s);
  // Lengths of one, two and three bytes.
  EXPECT_EQ(aml::scope("_SB", std::string(58, 'x')).substr(0, 2), "\x10\x3f"s);
  EXPECT_EQ(aml::scope("_SB", std::string(59, 'x')).substr(0, 3), "\x10\x41\x04"s);
  EXPECT_EQ(aml::scope("_SB", std::string(4090, 'x')).substr(0, 4), "\x10\x81\x00\x01"s);
  EXPECT_EQ(aml::scope("_SB", std::string(4090, 'x')).size(), 4098u);
}

TEST(Acpi, AnIndependentCompilerReadsTheDsdt) {
  if (std::system("iasl -v >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "needs iasl: install acpica-tools";
  }
  std::string folder = std::filesystem::temp_directory_path() / "millrace-acpi-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  {
    std::ofstream file{folder + "/dsdt.aml", std::ios::binary};
    file << make_acpi_table("DSDT", 2, make_dsdt_body({2, window, 9, 4, 2}));
  }
  const auto command =
      "cd " + folder + " && iasl -d dsdt.aml >log 2>&1 && iasl dsdt.dsl >>log 2>&1";
  const int status = std::system(command.c_str());
  std::ifstream source{folder + "/dsdt.dsl"}, log_file{folder + "/log"};
  const std::string text{std::istreambuf_iterator<char>{source}, {}},
      log{std::istreambuf_iterator<char>{log_file}, {}};
  std::filesystem::remove_all(folder);
  EXPECT_EQ(status, 0) << log;
  EXPECT_NE(log.find("0 Errors"), std::string::npos) << log;
  for (const auto* const piece :
       {"EisaId (\"PNP0A08\")", "Device (COM1)", "Notify (\\_SB.PWRB, 0x80)", "\"ACPI0013\"",
        "0x0000000800000000, // Range Minimum", "Name (\\_S5, Package", "Return (Arg3)",
        "\"ACPI0007\"", "Notify (\\_SB.CPUS.C003, One)", "Notify (\\_SB.M001, One)",
        "\\_SB.CPUS.C002.CHEK ()", "_Y01._MIN, MINA)", "QWordMemory (ResourceConsumer,",
        "MINA = (STRT << 0x1B)"}) {
    EXPECT_NE(text.find(piece), std::string::npos) << piece << "\n" << text;
  }
}

TEST(Platform, TheHighWindowLiesAboveAllMemoryAndBelowTheProcessorsLimit) {
  auto ram = GuestRam::make({.bytes = 64 << 20});
  ASSERT_TRUE(ram);
  const auto narrow = choose_high_window(*ram, 36);
  ASSERT_TRUE(narrow);
  EXPECT_EQ(narrow->start, 1ull << 35);
  EXPECT_EQ(narrow->start + narrow->size, 1ull << 36);
  const auto wide = choose_high_window(*ram, 46);
  ASSERT_TRUE(wide);
  EXPECT_EQ(wide->start, 1ull << 35);
  EXPECT_GT(wide->size, narrow->size);
  EXPECT_FALSE(choose_high_window(*ram, 35));
}

}  // namespace

}  // namespace millrace::vmm

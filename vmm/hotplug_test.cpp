// What is added to a guest while it runs: the registers that say so, the tables that read them, the
// memory itself.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <thread>

#include "vmm/acpi.hpp"
#include "vmm/hotplug_ports.hpp"
#include "vmm/ram.hpp"

namespace millrace::vmm {

namespace {

constexpr std::uint64_t mebibyte = 1 << 20, gibibyte = 1 << 30;
constexpr MemoryWindow window{0x8'0000'0000, 0x10'0000'0000};

template <class T>
T read(HotplugPorts& ports, std::uint64_t offset) {
  T value{};
  ports.read(offset, std::as_writable_bytes(std::span{&value, 1}));
  return value;
}

TEST(HotplugPorts, SayWhatIsThere) {
  HotplugPorts ports;
  EXPECT_EQ(read<std::uint8_t>(ports, HotplugPorts::cpus), 0);
  ports.set_cpus(7);
  EXPECT_EQ(read<std::uint8_t>(ports, HotplugPorts::cpus), 7);
  ports.set_memory(0, 6 * gibibyte, 256 * mebibyte);
  ports.set_memory(31, 8 * gibibyte, 2 * gibibyte);
  EXPECT_EQ(read<std::uint32_t>(ports, HotplugPorts::memory), 48u);
  EXPECT_EQ(read<std::uint32_t>(ports, HotplugPorts::memory + 4), 2u);
  EXPECT_EQ(read<std::uint64_t>(ports, HotplugPorts::memory + 8), 0u);
  EXPECT_EQ(read<std::uint64_t>(ports, HotplugPorts::memory + 31 * 8), 64u | 16ull << 32);
}

// Every access of every size, and writes change nothing.
TEST(HotplugPorts, AreSafeToAccessAnyhow) {
  HotplugPorts ports;
  ports.set_cpus(3);
  ports.set_memory(31, 6 * gibibyte, 128 * mebibyte);
  std::vector<std::byte> before(HotplugPorts::size), after(before.size());
  ports.read(0, before);
  const std::vector<std::byte> ones(8, std::byte{0xff});
  for (std::uint64_t at = 0; at < HotplugPorts::size; ++at) {
    for (const std::size_t size : {1, 2, 4, 8}) {
      ports.write(at, std::span{ones}.first(size));
      read<std::uint64_t>(ports, at);  // also across the end
    }
  }
  ports.read(0, after);
  EXPECT_EQ(before, after);
}

// How often a name is in the tables.
unsigned count(const std::string& body, const std::string& name) {
  unsigned found = 0;
  for (auto at = body.find(name); at != std::string::npos; at = body.find(name, at + 1)) ++found;
  return found;
}

TEST(AcpiHotplug, TablesHaveADeviceForAllThatMayCome) {
  const auto fixed = make_dsdt_body({.cpus = 4, .high_window = window});
  EXPECT_EQ(count(fixed, "ACPI0007") + count(fixed, "CHEK") + count(fixed, "MEMR"), 0u);
  const auto body =
      make_dsdt_body({.cpus = 2, .high_window = window, .cpus_most = 6, .memory_slots = 3});
  EXPECT_EQ(count(body, "ACPI0007"), 6u);
  EXPECT_EQ(count(body, "_MAT"), 6u);
  // A method, and the call of it in the event's.
  EXPECT_EQ(count(body, "CHEK"), 2u * (4 + 3));
  EXPECT_EQ(count(body, std::string{"\x0c\x41\xd0\x0c\x80", 5}), 3u);  // PNP0C80
}

TEST(AcpiHotplug, TheMadtListsVcpusThatMayCome) {
  const auto image =
      make_acpi({.cpus = 2, .high_window = window, .cpus_most = 5, .memory_slots = 0});
  ASSERT_TRUE(image);
  const auto at = image->bytes.find("APIC");
  ASSERT_NE(at, std::string::npos);
  std::vector<unsigned> flags;
  for (unsigned i = 0; i < 5; ++i) {
    const auto entry = at + 44 + std::size_t{8} * i;
    EXPECT_EQ(image->bytes[entry], 0);
    EXPECT_EQ(image->bytes[entry + 3], static_cast<char>(i));
    flags.push_back(static_cast<unsigned char>(image->bytes[entry + 4]));
  }
  EXPECT_EQ(flags, (std::vector<unsigned>{1, 1, 2, 2, 2}));  // enabled; online capable
}

class User final : public RamUser {
 public:
  void memory_added() override { ++told; }
  unsigned told = 0;
};

GuestRam ram_of(std::uint64_t bytes, std::uint64_t most, unsigned slots) {
  auto ram = GuestRam::make({.bytes = bytes, .bytes_most = most, .slots = slots});
  EXPECT_TRUE(ram) << ram.error().message;
  return *std::move(ram);
}

TEST(RamGrowth, PiecesLieOneAfterTheOtherAboveAllElse) {
  auto ram = ram_of(256 * mebibyte, 1024 * mebibyte, 3);
  EXPECT_EQ(ram.end_of_all(), 4 * gibibyte + 768 * mebibyte);
  unsigned done = 0;
  for (const std::uint64_t size : {256, 384, 128}) {
    auto piece = ram.make_piece(size * mebibyte);
    ASSERT_TRUE(piece) << piece.error().message;
    ram.add(*std::move(piece), [&] { ++done; });
  }
  EXPECT_EQ(done, 3u);
  const auto regions = ram.regions();
  ASSERT_EQ(regions.size(), 4u);
  auto end = 4 * gibibyte;
  for (std::size_t i = 1; i < regions.size(); ++i) {
    EXPECT_EQ(regions[i].guest_address, end);
    end = regions[i].end();
    // A large page of one side is one of the other's.
    EXPECT_EQ(
        (reinterpret_cast<std::uintptr_t>(regions[i].host) ^ regions[i].guest_address) % gibibyte,
        0u);
    const auto bytes = ram.at(regions[i].guest_address, regions[i].size);
    ASSERT_EQ(bytes.size(), regions[i].size);
    bytes.back() = std::byte{0x5a};
    struct stat file {};
    ASSERT_EQ(::fstat(regions[i].file, &file), 0);
    EXPECT_EQ(static_cast<std::uint64_t>(file.st_size), regions[i].size);
  }
  EXPECT_EQ(end, ram.end_of_all());
  EXPECT_TRUE(ram.at(regions[1].end() - 1, 2).empty());  // not across pieces
  EXPECT_FALSE(ram.make_piece(128 * mebibyte));
}

TEST(RamGrowth, RefusesWhatDoesNotFit) {
  auto ram = ram_of(256 * mebibyte, 768 * mebibyte, 1);
  EXPECT_FALSE(ram.make_piece(0));
  EXPECT_FALSE(ram.make_piece(64 * mebibyte));
  EXPECT_FALSE(ram.make_piece(640 * mebibyte));
  EXPECT_FALSE(ram.make_piece(~0ull));
  ram.add(*ram.make_piece(128 * mebibyte), [] {});
  const auto again = ram.make_piece(128 * mebibyte);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find("384 MiB more memory in 0 pieces"), std::string::npos)
      << again.error().message;
  EXPECT_FALSE(ram_of(256 * mebibyte, 256 * mebibyte, 0).make_piece(128 * mebibyte));
  EXPECT_FALSE(GuestRam::make({.bytes = 256 * mebibyte, .bytes_most = 257 * mebibyte, .slots = 1}));
  EXPECT_FALSE(GuestRam::make({.bytes = 256 * mebibyte, .bytes_most = ~0ull << 30, .slots = 1}));
  EXPECT_FALSE(GuestRam::make({.bytes = 256 * mebibyte, .slots = 33}));
  // Where Linux begins to use larger blocks.
  EXPECT_EQ(ram_of(64 * gibibyte, 66 * gibibyte, 1).unit(), 2 * gibibyte);
}

TEST(RamGrowth, TheGuestIsToldOnceEveryUserHasIt) {
  auto ram = ram_of(256 * mebibyte, 1024 * mebibyte, 4);
  User one, two;
  ram.attach(one);
  ram.attach(two);
  unsigned done = 0;
  ram.add(*ram.make_piece(128 * mebibyte), [&] { ++done; });
  EXPECT_EQ(one.told, 1u);
  EXPECT_EQ(two.told, 1u);
  ram.taken(one);
  ram.taken(one);
  EXPECT_EQ(done, 0u);
  EXPECT_NE(ram.make_piece(128 * mebibyte).error().message.find("try again"), std::string::npos);
  ram.taken(two);
  EXPECT_EQ(done, 1u);
  // A user that goes keeps nobody waiting.
  ram.add(*ram.make_piece(128 * mebibyte), [&] { ++done; });
  ram.taken(one);
  EXPECT_EQ(done, 1u);
  ram.detach(two);
  EXPECT_EQ(done, 2u);
  ram.detach(one);
  EXPECT_EQ(two.told, 2u);
}

TEST(RamGrowth, DevicesLieAboveAllMemoryThatMayCome) {
  const auto ram = ram_of(256 * mebibyte, 40 * gibibyte + 256 * mebibyte, 4);
  const auto devices = choose_high_window(ram, 48);
  ASSERT_TRUE(devices);
  EXPECT_GE(devices->start, ram.end_of_all());
  EXPECT_FALSE(choose_high_window(ram, 36));
}

// Readers need no lock: what they find is whole.
TEST(RamGrowth, MayBeReadWhileItGrows) {
  auto ram = ram_of(128 * mebibyte, 128 * mebibyte + 4 * gibibyte, 32);
  std::atomic<bool> stop{false};
  std::atomic<unsigned> wrong{0};
  std::thread reader{[&] {
    while (!stop.load()) {
      for (const auto& region : ram.regions()) {
        if (region.size == 0 || region.host == nullptr || region.file < 0) ++wrong;
      }
    }
  }};
  for (unsigned i = 0; i < 32; ++i) ram.add(*ram.make_piece(128 * mebibyte), [] {});
  stop.store(true);
  reader.join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_EQ(ram.regions().size(), 33u);
}

}  // namespace

}  // namespace millrace::vmm

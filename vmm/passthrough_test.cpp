#include "vmm/passthrough.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <map>

#include "vfio/testing/fake_kernel.hpp"
#include "vmm/bus.hpp"
#include "vmm/testing/fake_machine.hpp"

namespace millrace::vmm {
namespace {

namespace fs = std::filesystem;

constexpr auto address = "0000:01:10.0";
constexpr std::uint32_t msix_at = 0x70, express_at = 0xa0;
constexpr std::uint16_t memory_on = 2, bus_master = 4, no_intx = 1 << 10;
constexpr std::uint16_t enable = 1 << 15;
constexpr std::uint64_t registers = 0xd000'0000, table = 0xd001'0000;  // where a guest puts BARs

class FakeSlots final : public BarSlots {
 public:
  struct Slot {
    std::uint64_t guest_address, size;
    std::byte* host;
  };
  base::Result<unsigned> add(std::uint64_t guest_address, std::uint64_t size,
                             std::byte* host) override {
    if (refuse) return base::fail("KVM refuses to map a BAR");
    slots[next] = {guest_address, size, host};
    return next++;
  }
  void remove(unsigned slot) override { slots.erase(slot); }

  std::map<unsigned, Slot> slots;
  unsigned next = 0;
  bool refuse = false;
};

template <class T>
void put(std::vector<std::byte>& bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

// An igbvf as the kernel shows it: registers in BAR 0, the MSI-X table in BAR 3.
std::vector<std::byte> igbvf_config() {
  std::vector<std::byte> config(4096);
  put<std::uint16_t>(config, 0x00, 0x8086);
  put<std::uint16_t>(config, 0x02, 0x10ca);
  put<std::uint16_t>(config, 0x06, 0x10);
  put<std::uint32_t>(config, 0x08, 0x02000001);
  put<std::uint32_t>(config, 0x10, 0x4);  // 64 bits
  put<std::uint32_t>(config, 0x1c, 0x4);
  put<std::uint16_t>(config, 0x2e, 0x1234);
  put<std::uint8_t>(config, 0x34, 0x40);
  put<std::uint16_t>(config, 0x40, 0x5001);  // power management, which is left out
  put<std::uint16_t>(config, 0x50, 0x7009);  // a vendor's own
  put<std::uint16_t>(config, msix_at, express_at << 8 | 0x11);
  put<std::uint16_t>(config, msix_at + 2, 2);
  put<std::uint32_t>(config, msix_at + 4, 3);
  put<std::uint32_t>(config, msix_at + 8, 0x2000 | 3);
  put<std::uint16_t>(config, express_at, 0x10);
  put<std::uint16_t>(config, express_at + 2, 2);
  put<std::uint32_t>(config, express_at + 4, 1u << 28);  // FLR
  return config;
}

struct PassthroughTest : ::testing::Test {
  PassthroughTest() {
    function.address = address;
    function.regions[0].resize(0x4000);
    function.regions[3].resize(0x4000);
    function.regions[vfio::region_config] = igbvf_config();
    std::string name = "/tmp/mill-passthrough-XXXXXX";
    root = ::mkdtemp(name.data());
    const auto at = root / "sys/bus/pci/devices" / address;
    fs::create_directories(at);
    fs::create_directories(root / "groups/7/devices");
    fs::create_symlink(root / "groups/7", at / "iommu_group");
    fs::create_symlink("../drivers/vfio-pci", at / "driver");
    auto made = GuestRam::make({.bytes = 64 << 20, .bytes_most = 0});
    ram = std::make_unique<GuestRam>(*std::move(made));
  }
  ~PassthroughTest() override {
    drop();
    fs::remove_all(root);
  }

  void open() {
    auto opened = HostFunctions::open({address}, kernel, root);
    ASSERT_TRUE(opened) << opened.error().message;
    functions = *std::move(opened);
  }
  base::Result<void> plug() {
    if (functions == nullptr) open();
    auto taken = functions->take(address, *ram);
    if (!taken) return base::Unexpected{taken.error()};
    auto made = Passthrough::make(*std::move(taken), slots, interrupts);
    if (!made) return base::Unexpected{made.error()};
    device = *std::move(made);
    device->set_memory_bus(&bus);
    return {};
  }
  void drop() {
    if (device) device->set_memory_bus(nullptr);
    device.reset();
  }

  template <class T>
  T read(std::uint32_t offset) const {
    std::array<std::byte, sizeof(T)> bytes{};
    device->config_read(offset, bytes);
    return std::bit_cast<T>(bytes);
  }
  template <class T>
  void write(std::uint32_t offset, T value) const {
    device->config_write(offset, std::as_bytes(std::span{&value, 1}));
  }
  template <class T>
  void write_memory(std::uint64_t at, T value) {
    EXPECT_TRUE(bus.write(at, std::as_bytes(std::span{&value, 1})));
  }
  template <class T>
  T read_memory(std::uint64_t at) {
    std::array<std::byte, sizeof(T)> bytes{};
    EXPECT_TRUE(bus.read(at, bytes));
    return std::bit_cast<T>(bytes);
  }
  template <class T>
  T hardware(std::uint32_t offset) const {
    T value;
    std::memcpy(&value, function.regions[vfio::region_config].data() + offset, sizeof value);
    return value;
  }
  void place_bars() const {
    write<std::uint32_t>(0x10, registers);
    write<std::uint32_t>(0x14, 0);
    write<std::uint32_t>(0x1c, table);
    write<std::uint32_t>(0x20, 0);
    write<std::uint16_t>(4, memory_on | bus_master);
  }

  vfio::testing::FakeKernel kernel;
  vfio::testing::FakeKernel::Function& function{kernel.groups[7].function};
  fs::path root;
  std::unique_ptr<GuestRam> ram;
  std::unique_ptr<HostFunctions> functions;
  FakeSlots slots;
  testing::FakeInterrupts interrupts;
  Bus bus;
  std::unique_ptr<Passthrough> device;
};

TEST_F(PassthroughTest, ShowsWhatAGuestMaySee) {
  ASSERT_TRUE(plug());
  EXPECT_EQ(read<std::uint32_t>(0), 0x10ca'8086u);
  EXPECT_EQ(read<std::uint32_t>(8), 0x0200'0001u);
  EXPECT_EQ(read<std::uint8_t>(0x34), msix_at);
  EXPECT_EQ(read<std::uint16_t>(msix_at), express_at << 8 | 0x11);
  EXPECT_EQ(read<std::uint16_t>(msix_at + 2), 2u);
  EXPECT_EQ(read<std::uint32_t>(msix_at + 8), 0x2003u);
  EXPECT_EQ(read<std::uint16_t>(express_at), 0x10u);  // the last one
  EXPECT_EQ(read<std::uint32_t>(express_at + 4), 1u << 28);
  EXPECT_EQ(read<std::uint32_t>(0x40), 0u);
  EXPECT_EQ(read<std::uint32_t>(0x100), 0u);
  EXPECT_EQ(device->bar(0).size, 0x4000u);
  EXPECT_TRUE(device->bar(0).wide);
  EXPECT_EQ(device->bar(2).size, 0u);
}

TEST_F(PassthroughTest, GivesTheGuestItsPagesButTheTable) {
  ASSERT_TRUE(plug());
  EXPECT_TRUE(slots.slots.empty());
  place_bars();
  ASSERT_EQ(slots.slots.size(), 3u);  // BAR 0; of BAR 3 one page between table and pending bits...
  EXPECT_EQ(slots.slots[0].guest_address, registers);
  EXPECT_EQ(slots.slots[0].size, 0x4000u);
  EXPECT_EQ(slots.slots[0].host, function.regions[0].data());
  EXPECT_EQ(slots.slots[1].guest_address, table + 0x1000);
  EXPECT_EQ(slots.slots[1].size, 0x1000u);
  EXPECT_EQ(slots.slots[1].host, function.regions[3].data() + 0x1000);
  EXPECT_EQ(slots.slots[2].guest_address, table + 0x3000);  // ... and what follows those
  write<std::uint32_t>(0x10, registers + 0x10'0000);
  EXPECT_EQ(slots.slots.rbegin()->second.guest_address, registers + 0x10'0000);
  write<std::uint16_t>(4, 0);
  EXPECT_TRUE(slots.slots.empty());
}

TEST_F(PassthroughTest, TrapsWhatCannotBeMapped) {
  slots.refuse = true;
  ASSERT_TRUE(plug());
  place_bars();
  write_memory<std::uint32_t>(registers + 0x18, 0x1234'5678);
  EXPECT_EQ(std::to_integer<int>(function.regions[0][0x18]), 0x78);
  EXPECT_EQ(read_memory<std::uint16_t>(registers + 0x1a), 0x1234u);
  function.gone = true;
  EXPECT_EQ(read_memory<std::uint32_t>(registers + 0x18), 0xffff'ffffu);
  function.gone = false;
}

TEST_F(PassthroughTest, InterruptsComeThroughTheEmulatedTable) {
  ASSERT_TRUE(plug());
  place_bars();
  const auto set = [&](unsigned vector, std::uint32_t low, std::uint32_t data, std::uint32_t mask) {
    write_memory<std::uint32_t>(table + 16 * vector, low);
    write_memory<std::uint32_t>(table + 16 * vector + 8, data);
    write_memory<std::uint32_t>(table + 16 * vector + 12, mask);
  };
  set(1, 0xfee0'0000, 0x41, 0);
  write<std::uint16_t>(msix_at + 2, enable);
  // The hardware's own table was not touched, and signals go to the vectors' eventfds.
  EXPECT_EQ(function.regions[3], std::vector<std::byte>(0x4000));
  ASSERT_EQ(function.eventfds.count({2, 2}), 1u);
  ::eventfd_write(function.eventfds.at({2, 1}), 1);
  EXPECT_TRUE(interrupts.vectors[1]->delivered());
  EXPECT_EQ(interrupts.vectors[1]->message(), (MsiMessage{0xfee0'0000, 0x41}));
  // Masked: latched, and shown as pending.
  set(1, 0xfee0'0000, 0x41, 1);
  ::eventfd_write(function.eventfds.at({2, 1}), 1);
  EXPECT_EQ(read_memory<std::uint64_t>(table + 0x2000), 2u);
  set(1, 0xfee0'0000, 0x41, 0);
  EXPECT_TRUE(interrupts.vectors[1]->delivered());
  write<std::uint16_t>(msix_at + 2, 0);
  EXPECT_EQ(function.eventfds.count({2, 1}), 0u);
}

// Three vectors are 48 bytes. The hardware's own table begins where the emulated one does.
TEST_F(PassthroughTest, AnAccessThatReachesIntoTheTableDoesNotReachTheHardware) {
  ASSERT_TRUE(plug());
  place_bars();
  auto& hardware_bar = function.regions[3];
  std::ranges::fill(hardware_bar, std::byte{0x5a});
  const auto before = hardware_bar;
  write_memory<std::uint64_t>(table + 44, 0x1122'3344'5566'7788);
  EXPECT_EQ(hardware_bar, before);
  EXPECT_EQ(read_memory<std::uint64_t>(table + 44), ~0ull);
  // What lies behind it is the function's.
  write_memory<std::uint32_t>(table + 48, 0x1122'3344);
  EXPECT_NE(hardware_bar, before);
  EXPECT_EQ(read_memory<std::uint32_t>(table + 48), 0x1122'3344u);
}

TEST_F(PassthroughTest, PassesBusMasteringOnAndLeavesMemoryOn) {
  ASSERT_TRUE(plug());
  EXPECT_EQ(hardware<std::uint16_t>(4), memory_on | no_intx);
  write<std::uint16_t>(4, memory_on | bus_master);
  EXPECT_EQ(hardware<std::uint16_t>(4), memory_on | bus_master | no_intx);
  write<std::uint16_t>(4, 0);
  EXPECT_EQ(hardware<std::uint16_t>(4), memory_on | no_intx);
}

TEST_F(PassthroughTest, PassesExpressRegistersOnAndNothingElse) {
  ASSERT_TRUE(plug());
  const auto before = function.regions[vfio::region_config];
  write<std::uint16_t>(express_at + 8, 0x8123);
  EXPECT_EQ(hardware<std::uint16_t>(express_at + 8), 0x8123u);
  EXPECT_EQ(read<std::uint16_t>(express_at + 8), 0x8123u);
  auto now = function.regions[vfio::region_config];
  put<std::uint16_t>(now, express_at + 8, 0);
  EXPECT_EQ(now, before);
  for (std::uint32_t at = 0; at < PciFunction::config_size; at += 4) {
    if (at == 4 || (at >= express_at && at < express_at + 0x3c)) continue;
    write<std::uint32_t>(at, ~0u);
  }
  now = function.regions[vfio::region_config];
  put<std::uint16_t>(now, express_at + 8, 0);
  EXPECT_EQ(now, before);
  // Of the first word the guest may write neither the capability's name nor the next one's place.
  write<std::uint32_t>(express_at, ~0u);
  EXPECT_EQ(hardware<std::uint16_t>(express_at), 0x10u);
}

// What a guest can do at all: every offset, every size, any value.
TEST_F(PassthroughTest, SurvivesEveryAccess) {
  ASSERT_TRUE(plug());
  place_bars();
  for (std::uint64_t at = 0; at < 0x4000; at += 1) {
    for (const std::size_t size : {1, 2, 4, 8}) {
      std::array<std::byte, 8> bytes{};
      bytes.fill(std::byte{0xff});
      bus.write(table + at, std::span<const std::byte>{bytes}.first(size));
      bus.read(table + at, std::span{bytes}.first(size));
    }
  }
  for (std::uint32_t at = 0; at < PciFunction::config_size; ++at) {
    for (const std::size_t size : {1, 2, 4}) {
      if (at % size != 0) continue;
      std::array<std::byte, 4> bytes{};
      bytes.fill(std::byte(at));
      device->config_write(at, std::span<const std::byte>{bytes}.first(size));
      device->config_read(at, std::span{bytes}.first(size));
    }
  }
  device->reset();
  EXPECT_EQ(hardware<std::uint16_t>(4) & bus_master, 0);
}

TEST_F(PassthroughTest, IsResetWhenItComesAndGoes) {
  ASSERT_TRUE(plug());
  EXPECT_EQ(function.resets, 1u);
  device->reset();  // of the slot
  EXPECT_EQ(function.resets, 2u);
  place_bars();
  write<std::uint16_t>(msix_at + 2, enable);
  drop();
  EXPECT_EQ(function.resets, 3u);
  EXPECT_EQ(hardware<std::uint16_t>(4) & bus_master, 0);
  EXPECT_EQ(function.eventfds.count({2, 0}), 0u);
  EXPECT_EQ(kernel.mapped, 0);
  EXPECT_TRUE(slots.slots.empty());
}

TEST_F(PassthroughTest, ReachesTheGuestsMemoryOnlyWhileItIsThere) {
  open();
  EXPECT_TRUE(kernel.mappings.empty());
  ASSERT_TRUE(plug());
  ASSERT_EQ(kernel.mappings.size(), ram->regions().size());
  const auto& region = ram->regions()[0];
  const auto& mapping = kernel.mappings.at(region.guest_address);
  EXPECT_EQ(mapping.size, region.size);
  EXPECT_EQ(mapping.vaddr, reinterpret_cast<std::uintptr_t>(region.host));
  drop();
  EXPECT_TRUE(kernel.mappings.empty());
  // And again, as after the guest's start over.
  ASSERT_TRUE(plug());
  EXPECT_EQ(kernel.mappings.size(), ram->regions().size());
}

TEST_F(PassthroughTest, HasMemoryThatIsAddedBeforeTheGuestHearsOfIt) {
  auto made = GuestRam::make({.bytes = 256 << 20, .bytes_most = 512 << 20, .slots = 1});
  ASSERT_TRUE(made) << made.error().message;
  ram = std::make_unique<GuestRam>(*std::move(made));
  ASSERT_TRUE(plug());
  const auto before = kernel.mappings.size();
  auto piece = ram->make_piece(ram->unit());
  ASSERT_TRUE(piece) << piece.error().message;
  const auto at = piece->region().guest_address;
  std::promise<std::size_t> mapped;
  ram->add(*std::move(piece), [&] { mapped.set_value(kernel.mappings.size()); });
  EXPECT_EQ(mapped.get_future().get(), before + 1);
  drop();
  EXPECT_EQ(kernel.mappings.count(at), 0u);
}

TEST_F(PassthroughTest, TellsOfErrorsAndOfAHostThatWantsItBack) {
  open();
  base::EventLoop loop;
  std::vector<std::string> failed, wanted;
  ASSERT_TRUE(functions->watch(
      loop, {.failed = [&](const std::string& which) { failed.push_back(which); },
             .wanted = [&](const std::string& which) { wanted.push_back(which); }}));
  ASSERT_TRUE(plug());
  ::eventfd_write(function.eventfds.at({4, 0}), 1);
  loop.step(std::chrono::milliseconds{1000});
  EXPECT_EQ(wanted, std::vector<std::string>{address});
  EXPECT_TRUE(failed.empty());
  ::eventfd_write(function.eventfds.at({3, 0}), 1);
  loop.step(std::chrono::milliseconds{1000});
  EXPECT_EQ(failed, std::vector<std::string>{address});
  EXPECT_EQ(wanted.size(), 1u);
}

TEST_F(PassthroughTest, RefusesInOneLineEach) {
  const auto why = [this] {
    const auto done = plug();
    return done ? std::string{"plugged"} : done.error().message;
  };
  function.can_reset = false;
  EXPECT_NE(why().find("no FLR"), std::string::npos);
  EXPECT_TRUE(kernel.mappings.empty());
  function.can_reset = true;
  put<std::uint16_t>(function.regions[vfio::region_config], msix_at, express_at << 8 | 0x05);
  EXPECT_NE(why().find("no MSI-X"), std::string::npos);
  function.regions[vfio::region_config] = igbvf_config();
  put<std::uint32_t>(function.regions[vfio::region_config], msix_at + 4, 0x3ff0 | 3);
  EXPECT_NE(why().find("outside of its BARs"), std::string::npos);
  function.regions[vfio::region_config] = igbvf_config();
  put<std::uint8_t>(function.regions[vfio::region_config], 0x0e, 1);
  EXPECT_NE(why().find("a bridge"), std::string::npos);
  function.regions[vfio::region_config] = igbvf_config();
  interrupts.vectors_max = 2;
  EXPECT_NE(why().find("no interrupt route"), std::string::npos);
  kernel.locked_limit = 1 << 20;
  interrupts.vectors_max = 4096;
  functions.reset();
  kernel.groups[7].attached = false;
  EXPECT_NE(why().find("this process may lock 1.00 MiB"), std::string::npos);
  const auto other = functions->take("0000:01:10.2", *ram);
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message.find("--vfio-allow 0000:01:10.2"), std::string::npos);
}

TEST(FunctionShape, ReadsAListThatBitesItsTail) {
  auto config = igbvf_config();
  put<std::uint16_t>(config, 0x50, 0x4009);  // back to the first one
  const std::array<std::uint64_t, 6> sizes{0x4000, 0, 0, 0x4000, 0, 0};
  const auto shape = shape_of(std::span{config}.first<256>(), sizes);
  ASSERT_FALSE(shape);
  EXPECT_NE(shape.error().message.find("no MSI-X"), std::string::npos);
}

TEST(FunctionShape, RefusesBarsOfNoSize) {
  const auto config = igbvf_config();
  for (const std::uint64_t size : {0x3000ull, 0x4001ull, ~0ull}) {
    const std::array<std::uint64_t, 6> sizes{size, 0, 0, 0x4000, 0, 0};
    EXPECT_FALSE(shape_of(std::span{config}.first<256>(), sizes)) << size;
  }
  const std::array<std::uint64_t, 6> small{0x100, 0, 0, 0x4000, 0, 0};
  const auto shape = shape_of(std::span{config}.first<256>(), small);
  ASSERT_TRUE(shape);
  EXPECT_EQ(shape->bars[0].size, 4096u);
}

TEST(FunctionShape, LeavesTheTablesPagesOut) {
  const auto config = igbvf_config();
  const std::array<std::uint64_t, 6> sizes{0x4000, 0, 0, 0x4000, 0, 0};
  const auto shape = shape_of(std::span{config}.first<256>(), sizes);
  ASSERT_TRUE(shape);
  using Areas = std::vector<vfio::Area>;
  const Areas whole{{0, 0x4000}}, head{{0, 0x1000}};
  EXPECT_EQ(areas_for_guest(*shape, 0, whole), whole);
  EXPECT_EQ(areas_for_guest(*shape, 3, whole), (Areas{{0x1000, 0x1000}, {0x3000, 0x1000}}));
  EXPECT_TRUE(areas_for_guest(*shape, 3, head).empty());
}

}  // namespace
}  // namespace millrace::vmm

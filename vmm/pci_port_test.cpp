// Root ports, as the hot plug driver of a guest uses them and as a guest may abuse them.
#include "vmm/pci_port.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "vmm/pci_root.hpp"
#include "vmm/testing/fake_machine.hpp"

namespace millrace::vmm {

namespace {

using namespace std::chrono_literals;
using testing::FakeInterrupts;
using Byte = std::uint8_t;
using Word = std::uint16_t;
using Double = std::uint32_t;
using Quad = std::uint64_t;

constexpr MemoryWindow high{0x8'0000'0000, 0x8'0000'0000};
constexpr Word command = 4, memory_and_master = 6, bridge_control = 0x3e;
// Slot control and status.
constexpr Word button = 1, presence = 1 << 3, link_event = 1 << 8, occupied = 1 << 6;
constexpr Word enable_all = button | 1 << 5 | 1 << 12;  // the button, the link, interrupts
constexpr Word lamp_on = 1 << 8, lamp_blinks = 2 << 8, lamp_off = 3 << 8;
constexpr Word link_active = 1 << 13;

// One BAR of 64 bits, one of 32, and a register that counts resets.
class Device final : public PciFunction, private BusDevice {
 public:
  explicit Device(std::atomic<int>* alive = nullptr)
      : PciFunction{{.vendor = 0x1234, .device = 0x5678}}, alive_{alive} {
    add_memory_bar(0, 0x1000, false, *this);
    add_memory_bar(4, 0x4000, true, *this);
    if (alive_ != nullptr) ++*alive_;
  }
  ~Device() override {
    if (alive_ != nullptr) --*alive_;
  }
  unsigned resets = 0;

 private:
  void read(Quad, std::span<std::byte> data) override { std::ranges::fill(data, std::byte{0x5a}); }
  void write(Quad, std::span<const std::byte>) override {}
  void device_reset() override { ++resets; }
  std::atomic<int>* alive_;
};

class PortTest : public ::testing::Test {
 protected:
  static constexpr unsigned ports = 10;
  void SetUp() override {
    ASSERT_TRUE(root.start(ports, interrupts, [this] { ++let_go; }));
  }

  template <class T>
  T read(unsigned bus, unsigned devfn, Double offset) {
    T value{};
    memory.read(PciRoot::ecam_address + (bus << 20) + (devfn << 12) + offset,
                std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  template <class T>
  void write(unsigned bus, unsigned devfn, Double offset, T value) {
    memory.write(PciRoot::ecam_address + (bus << 20) + (devfn << 12) + offset,
                 std::as_bytes(std::span{&value, 1}));
  }
  // Of port 0.
  template <class T>
  T read(Double offset) {
    return read<T>(0, pci_layout::port_devfn(0), offset);
  }
  template <class T>
  void write(Double offset, T value) {
    write(0, pci_layout::port_devfn(0), offset, value);
  }
  Byte capability(Byte id) {
    auto at = read<Byte>(0x34);
    while (at != 0 && read<Byte>(at) != id) at = read<Byte>(at + 1u);
    return at;
  }
  Double express(Double offset) { return capability(0x10) + offset; }
  Word slot_status() { return read<Word>(express(0x1a)); }
  // What the driver does when it binds: MSI, all events cleared, then enabled.
  void bind_driver() {
    const auto msi = capability(5);
    write<Quad>(msi + 4u, 0xfee0'0000);
    write<Word>(msi + 12u, 0x41);
    write<Word>(msi + 2u, 1);
    write<Word>(express(0x1a), 0xffff);
    lamp(lamp_off);
  }
  void lamp(Word state) { write<Word>(express(0x18), static_cast<Word>(enable_all | state)); }
  bool interrupted() { return interrupts.vectors[0]->delivered(); }
  // Plugged in and taken up.
  Device* running_device() {
    auto made = std::make_unique<Device>();
    auto* const device = made.get();
    EXPECT_TRUE(root.plug_behind(0, std::move(made), true));
    EXPECT_TRUE(interrupted());
    write<Word>(express(0x1a), link_event | presence);
    lamp(lamp_on);
    write<Word>(command, memory_and_master);
    write<Word>(1, 0, command, memory_and_master);
    return device;
  }
  [[nodiscard]] bool answers(Quad address) {
    Byte value = 0;
    return memory.read(address, std::as_writable_bytes(std::span{&value, 1})) && value == 0x5a;
  }
  Quad wide_bar(unsigned bus) { return read<Quad>(bus, 0, 0x20) & ~Quad{15}; }

  Bus ports_bus, memory;
  FakeInterrupts interrupts;
  std::atomic<int> let_go{0};
  PciRoot root{ports_bus, memory, high, [] {}};
};

TEST_F(PortTest, IsABridgeWithASlotThatKnowsHotPlug) {
  EXPECT_EQ(read<Double>(8) >> 8, 0x060400u);
  EXPECT_EQ(read<Byte>(0x0e), 0x81);  // a bridge, one function of several
  EXPECT_EQ(read<Byte>(0, pci_layout::port_devfn(1), 0x0e), 1);
  EXPECT_EQ(read<Double>(0x18), 0x00010100u);                     // buses 0, 1, 1
  EXPECT_EQ(read<Byte>(0, pci_layout::port_devfn(9), 0x19), 10);  // of another slot
  EXPECT_EQ(read<Byte>(0, pci_layout::port_devfn(10), 0), 0xff);  // there is none
  EXPECT_EQ(read<Word>(express(2)), 0x142);                       // root port with slot
  EXPECT_EQ(read<Double>(express(0x0c)) & 1 << 20, 1u << 20);     // link state reported
  EXPECT_EQ(read<Double>(express(0x14)), 1u << 19 | 1 << 18 | 1 << 6 | 1 << 4 | 1);
  EXPECT_EQ(slot_status(), 0);
  EXPECT_EQ(read<Word>(express(0x18)), lamp_off);
  EXPECT_EQ(read<Double>(1, 0, 0), ~0u);
}

TEST_F(PortTest, ADeviceThatComesIsALinkThatComesUp) {
  bind_driver();
  EXPECT_FALSE(interrupted());
  ASSERT_TRUE(root.plug_behind(0, std::make_unique<Device>(), true));
  EXPECT_TRUE(interrupted());
  EXPECT_EQ(slot_status(), occupied | presence | link_event);
  EXPECT_EQ(read<Word>(express(0x12)), link_active | 0x11);
  EXPECT_EQ(read<Double>(1, 0, 0), 0x5678'1234u);
  EXPECT_EQ(read<Double>(1, 8, 0), ~0u);  // it is alone on its bus
  // A one clears, and only the bytes that are written count.
  write<Byte>(express(0x1a), 0xff);
  EXPECT_EQ(slot_status(), occupied | link_event);
  write<Word>(express(0x1a), 0);
  EXPECT_EQ(slot_status(), occupied | link_event);
  write<Byte>(express(0x1b), 0xff);
  EXPECT_EQ(slot_status(), occupied);
  EXPECT_FALSE(interrupted());
  EXPECT_FALSE(root.plug_behind(0, std::make_unique<Device>(), true));
  EXPECT_FALSE(root.plug_behind(ports, std::make_unique<Device>(), true));
}

TEST_F(PortTest, AnEventIsToldOnceWhenItIsEnabled) {
  ASSERT_TRUE(root.plug_behind(0, std::make_unique<Device>(), true));
  write<Quad>(capability(5) + 4u, 0xfee0'0000);
  write<Word>(capability(5) + 2u, 1);
  EXPECT_FALSE(interrupted());
  lamp(lamp_off);
  EXPECT_TRUE(interrupted());
  lamp(lamp_blinks);
  EXPECT_FALSE(interrupted());
  // Masked, it waits.
  write<Word>(express(0x1a), 0xffff);
  write<Double>(capability(5) + 16u, 1);
  root.unplug_behind(0);
  EXPECT_FALSE(interrupted());
  EXPECT_EQ(read<Double>(capability(5) + 20u), 1u);
  write<Double>(capability(5) + 16u, 0);
  EXPECT_TRUE(interrupted());
  EXPECT_EQ(read<Double>(capability(5) + 20u), 0u);
}

TEST_F(PortTest, ADeviceGoesAfterTheGuestLetGoOfIt) {
  bind_driver();
  running_device();
  const auto now = PciPort::Clock::now();
  EXPECT_TRUE(root.ask_for_removal(0, now));
  EXPECT_TRUE(interrupted());
  EXPECT_EQ(slot_status(), occupied | button);
  EXPECT_FALSE(root.ask_for_removal(0, now + 1s));
  write<Word>(express(0x1a), button);
  lamp(lamp_blinks);
  // However long that takes: a second press would call it off.
  EXPECT_FALSE(root.ask_for_removal(0, now + 2 * PciPort::patience));
  EXPECT_EQ(slot_status(), occupied);
  EXPECT_EQ(let_go, 0);
  EXPECT_FALSE(root.released_port());
  lamp(lamp_off);
  EXPECT_EQ(let_go, 1);
  lamp(lamp_off);
  EXPECT_EQ(let_go, 1);
  ASSERT_EQ(root.released_port(), 0u);
  const auto bar = wide_bar(1);
  EXPECT_TRUE(answers(bar));
  EXPECT_TRUE(root.unplug_behind(0));
  EXPECT_FALSE(answers(bar));
  EXPECT_FALSE(root.released_port());
  EXPECT_EQ(slot_status(), presence | link_event);
  EXPECT_EQ(read<Word>(express(0x12)), 0);
  EXPECT_EQ(read<Double>(1, 0, 0), ~0u);
  EXPECT_TRUE(interrupted());
  write<Word>(express(0x1a), 0xffff);
  EXPECT_NE(running_device(), nullptr);  // and another one comes
}

TEST_F(PortTest, AGuestThatIsNotAskedKeepsItsDevice) {
  bind_driver();
  running_device();
  lamp(lamp_off);
  EXPECT_EQ(let_go, 0);
  EXPECT_FALSE(root.released_port());
  EXPECT_EQ(read<Double>(1, 0, 0), 0x5678'1234u);
}

TEST_F(PortTest, ADeviceThatNobodyUsesGoesAtOnce) {
  ASSERT_TRUE(root.plug_behind(0, std::make_unique<Device>(), true));
  EXPECT_TRUE(root.ask_for_removal(0, PciPort::Clock::now()));
  EXPECT_EQ(root.released_port(), 0u);
  EXPECT_EQ(let_go, 1);
  // But not one whose driver runs while the slot is called off, nor one that was there at the
  // start.
  ASSERT_TRUE(root.unplug_behind(0));
  bind_driver();
  running_device();
  lamp(lamp_off);
  EXPECT_TRUE(root.ask_for_removal(0, PciPort::Clock::now()));
  EXPECT_FALSE(root.released_port());
  ASSERT_TRUE(root.plug_behind(1, std::make_unique<Device>(), false));
  EXPECT_TRUE(root.ask_for_removal(1, PciPort::Clock::now()));
  EXPECT_FALSE(root.released_port());
}

TEST_F(PortTest, AGuestThatDoesNotReactIsAskedAgain) {
  bind_driver();
  running_device();
  const auto now = PciPort::Clock::now();
  EXPECT_TRUE(root.ask_for_removal(0, now));
  EXPECT_TRUE(interrupted());
  EXPECT_FALSE(root.ask_for_removal(0, now + PciPort::patience - 1ms));
  EXPECT_FALSE(interrupted());
  EXPECT_TRUE(root.ask_for_removal(0, now + PciPort::patience));
  EXPECT_TRUE(interrupted());  // though the first press was never cleared
}

TEST_F(PortTest, ConfigurationFollowsTheBusNumbersThatTheGuestWrites) {
  ASSERT_TRUE(root.plug_behind(0, std::make_unique<Device>(), true));
  ASSERT_TRUE(root.plug_behind(1, std::make_unique<Device>(), true));
  write<Byte>(0x19, 7);
  EXPECT_EQ(read<Double>(1, 0, 0), ~0u);
  EXPECT_EQ(read<Double>(7, 0, 0), 0x5678'1234u);
  // Two ports of one bus: the first answers.
  write<Byte>(0, pci_layout::port_devfn(1), 0x19, 7);
  write<Word>(7, 0, command, memory_and_master);
  EXPECT_EQ(read<Word>(7, 0, command), memory_and_master);
  write<Byte>(0x19, 1);
  EXPECT_EQ(read<Word>(7, 0, command), 0);
  EXPECT_EQ(read<Word>(1, 0, command), memory_and_master);
  // Bus 0 is the root's own, and what memory does not reach the ports do.
  write<Byte>(0x19, 0);
  EXPECT_EQ(read<Double>(0, 0, 0), 0x0008'1b36u);
  EXPECT_EQ(read<Double>(1, 0, 0), ~0u);
  write<Byte>(0x19, 0xff);
  Double value = 0x80ff'0000;
  ports_bus.write(0xcf8, std::as_bytes(std::span{&value, 1}));
  ports_bus.read(0xcfc, std::as_writable_bytes(std::span{&value, 1}));
  EXPECT_EQ(value, 0x5678'1234u);
}

TEST_F(PortTest, MemoryFollowsTheWindowsThatTheGuestWrites) {
  bind_driver();
  running_device();
  const Quad wide = wide_bar(1), narrow = read<Double>(1, 0, 0x10) & ~15u;
  EXPECT_TRUE(answers(wide));
  EXPECT_TRUE(answers(narrow));
  write<Word>(command, 0);  // the port forwards nothing
  EXPECT_FALSE(answers(wide));
  EXPECT_FALSE(answers(narrow));
  write<Word>(command, memory_and_master);
  EXPECT_TRUE(answers(wide));
  write<Word>(0x20, static_cast<Word>((narrow + (1 << 20)) >> 16));  // begins behind the BAR
  EXPECT_FALSE(answers(narrow));
  EXPECT_TRUE(answers(wide));
  write<Double>(0x28, static_cast<Double>(wide >> 32) + 1);
  EXPECT_FALSE(answers(wide));
  write<Double>(0x2c, static_cast<Double>(wide >> 32) + 1);
  EXPECT_FALSE(answers(wide));
  write<Quad>(1, 0, 0x20, wide + (1ull << 32));  // the device follows
  EXPECT_TRUE(answers(wide + (1ull << 32)));
  write<Word>(0x24, 0xfff0);  // a base above the limit is no window
  write<Word>(0x26, 0);
  EXPECT_FALSE(answers(wide + (1ull << 32)));
}

TEST_F(PortTest, ABusResetResetsTheDevice) {
  bind_driver();
  const auto* const device = running_device();
  const auto bar = wide_bar(1);
  write<Word>(bridge_control, 1 << 6);
  EXPECT_EQ(device->resets, 1u);
  EXPECT_EQ(read<Word>(1, 0, command), 0);
  EXPECT_EQ(read<Quad>(1, 0, 0x20), 0xcu);
  EXPECT_FALSE(answers(bar));
  EXPECT_EQ(read<Double>(1, 0, 0), 0x5678'1234u);
  write<Word>(bridge_control, 1 << 6);  // it is in reset already
  write<Word>(bridge_control, 0);
  EXPECT_EQ(device->resets, 1u);
  write<Quad>(1, 0, 0x20, bar);
  write<Word>(1, 0, command, memory_and_master);
  EXPECT_TRUE(answers(bar));
}

TEST(PciLayout, EveryPlaceHasADeviceOfItsOwnAddresses) {
  Bus ports_bus, memory;
  FakeInterrupts interrupts;
  PciRoot root{ports_bus, memory, high, [] {}};
  ASSERT_TRUE(root.start(pci_layout::ports_max, interrupts, [] {}));
  EXPECT_EQ(interrupts.vectors.size(), 64u);
  std::vector<std::pair<unsigned, unsigned>> where;
  for (unsigned slot = 1; slot <= pci_layout::direct_slots; ++slot) {
    ASSERT_TRUE(root.plug(slot, std::make_unique<Device>()));
    where.emplace_back(0, slot << 3);
  }
  for (unsigned port = 0; port < pci_layout::ports_max; ++port) {
    ASSERT_TRUE(root.plug_behind(port, std::make_unique<Device>(), false));
    where.emplace_back(port + 1, 0);
  }
  EXPECT_EQ(where.size(), pci_layout::devices_max);
  const auto at = [](unsigned bus, unsigned devfn, Double offset) {
    return PciRoot::ecam_address + (bus << 20) + (devfn << 12) + offset;
  };
  const auto enable = [&](unsigned bus, unsigned devfn) {
    memory.write(at(bus, devfn, command), std::as_bytes(std::span{&memory_and_master, 1}));
  };
  std::set<Quad> bars;
  for (unsigned port = 0; port < pci_layout::ports_max; ++port) {
    enable(0, pci_layout::port_devfn(port));
  }
  for (const auto& [bus, devfn] : where) {
    Double identity = 0;
    memory.read(at(bus, devfn, 0), std::as_writable_bytes(std::span{&identity, 1}));
    EXPECT_EQ(identity, 0x5678'1234u) << bus << ":" << devfn;
    enable(bus, devfn);
    Double narrow = 0;
    Quad wide = 0;
    memory.read(at(bus, devfn, 0x10), std::as_writable_bytes(std::span{&narrow, 1}));
    memory.read(at(bus, devfn, 0x20), std::as_writable_bytes(std::span{&wide, 1}));
    for (const auto address : {Quad{narrow}, wide & ~Quad{15}}) {
      Byte value = 0;
      memory.read(address, std::as_writable_bytes(std::span{&value, 1}));
      EXPECT_EQ(value, 0x5a) << bus << ":" << devfn;
      EXPECT_TRUE(bars.insert(address).second);
    }
  }
}

TEST(PciLayout, AsManyPortsAsDevicesNeedAndMore) {
  EXPECT_EQ(pci_layout::ports_needed(0, 0, 0), 0u);
  EXPECT_EQ(pci_layout::ports_needed(23, 0, 8), 8u);
  EXPECT_EQ(pci_layout::ports_needed(40, 0, 8), 25u);
  EXPECT_EQ(pci_layout::ports_needed(24, 3, 1), 4u);
  EXPECT_EQ(pci_layout::ports_needed(87, 0, 0), pci_layout::ports_max);
  Bus ports_bus, memory;
  FakeInterrupts interrupts;
  PciRoot root{ports_bus, memory, high, [] {}};
  EXPECT_FALSE(root.start(pci_layout::ports_max + 1, interrupts, [] {}));
}

// What the loop's thread does while vCPUs are at the device that it takes away.
TEST_F(PortTest, DevicesComeAndGoUnderTheHandsOfVcpus) {
  bind_driver();
  write<Word>(command, memory_and_master);
  std::atomic<int> alive{0};
  std::atomic<bool> stop{false};
  std::atomic<unsigned> seen{0};
  const auto bar = high.start + 24 * (high.size / 32);
  std::vector<std::thread> vcpus;
  for (int i = 0; i < 2; ++i) {
    vcpus.emplace_back([&] {
      while (!stop) {
        write<Word>(1, 0, command, memory_and_master);
        if (answers(bar)) ++seen;
        write<Word>(1, 0, command, 0);
        lamp(seen % 2 == 0 ? lamp_on : lamp_off);
        write<Byte>(0x19, 1);
      }
    });
  }
  for (int i = 0; i < 300 || seen == 0; ++i) {
    ASSERT_TRUE(root.plug_behind(0, std::make_unique<Device>(&alive), true));
    std::this_thread::yield();
    root.ask_for_removal(0, PciPort::Clock::now());
    EXPECT_TRUE(root.unplug_behind(0));
    EXPECT_EQ(alive, 0);
  }
  stop = true;
  for (auto& vcpu : vcpus) vcpu.join();
}

}  // namespace

}  // namespace millrace::vmm

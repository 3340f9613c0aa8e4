// A guest that writes nonsense everywhere: every port, every configuration byte, every register.
// Nothing may crash, hang or leave its bounds; the sanitizers' builds see more than this does.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "vmm/ioapic.hpp"
#include "vmm/pci_root.hpp"
#include "vmm/platform.hpp"
#include "vmm/power.hpp"
#include "vmm/serial.hpp"
#include "vmm/testing/fake_machine.hpp"

namespace millrace::vmm {

namespace {

constexpr std::uint64_t bar_size = 0x4000;

// Checks that nothing reaches it from outside its BAR.
class Bounded final : public BusDevice {
 public:
  void read(std::uint64_t offset, std::span<std::byte> data) override { note(offset, data.size()); }
  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    note(offset, data.size());
  }
  std::uint64_t accesses = 0;

 private:
  void note(std::uint64_t offset, std::size_t size) {
    ++accesses;
    EXPECT_LT(offset, bar_size);
    EXPECT_LE(size, bar_size - offset);
  }
};

class Function final : public PciFunction {
 public:
  explicit Function(Bounded& device) : PciFunction{{.vendor = 1, .device = 2}} {
    add_memory_bar(0, bar_size, true, device);
    add_memory_bar(4, bar_size, false, device);
    const std::array<std::byte, 10> body{};
    std::array<std::byte, 10> mask;
    mask.fill(std::byte{0xff});
    add_capability(9, body, mask);
  }
};

class Output final : public IoapicOutput {
 public:
  void send(const MsiMessage&) override { ++sent; }
  void report_end(unsigned pin, const std::optional<MsiMessage>&) override { EXPECT_LT(pin, 24u); }
  std::uint64_t sent = 0;
};

class Everything {
 public:
  Everything() {
    EXPECT_TRUE(memory.map(Ioapic::base_address, Ioapic::size, ioapic));
    EXPECT_TRUE(ports.map(PowerPorts::port, PowerPorts::size, power));
    EXPECT_TRUE(ports.map(KeyboardReset::port, 1, keyboard));
    EXPECT_TRUE(ports.map(PanicPort::port, 1, panic));
    EXPECT_TRUE(ports.map(serial_places[0].port, Serial::size, serial));
    EXPECT_TRUE(root.start(ports_count, interrupts, [this] { ++let_go; }));
    EXPECT_TRUE(root.plug(1, std::make_unique<Function>(device)));
    EXPECT_TRUE(root.plug(23, std::make_unique<Function>(device)));
    for (unsigned i = 0; i < ports_count; i += 2) {
      EXPECT_TRUE(root.plug_behind(i, std::make_unique<Function>(device), true));
    }
  }
  // The host's side, at any moment.
  void act(std::uint64_t random) {
    const auto port = static_cast<unsigned>(random >> 8 & 0xff) % ports_count;
    if (random % 2 == 0) {
      const auto ok = root.plug_behind(port, std::make_unique<Function>(device), true);
      if (ok) root.ask_for_removal(port, now += std::chrono::seconds{random % 8});
    }
    while (const auto released = root.released_port()) {
      EXPECT_TRUE(root.unplug_behind(*released));
    }
  }

  static constexpr unsigned ports_count = 10;
  testing::FakeInterrupts interrupts;
  PciPort::Clock::time_point now{};
  std::uint64_t let_go = 0;

  Bus ports, memory;
  Output output;
  Bounded device;
  Ioapic ioapic{output};
  std::uint64_t events = 0, sent = 0;
  GuestEventHandler on_event = [this](GuestEvent) { ++events; };
  PowerPorts power{on_event, [this](bool high) { ioapic.set_line(power_pin, high); }};
  KeyboardReset keyboard{on_event};
  PanicPort panic{on_event};
  Serial serial{{.interrupt = [this](bool high) { ioapic.set_line(4, high); },
                 .transmit = [this](std::byte) { ++sent; },
                 .room = [] {}}};
  PciRoot root{ports, memory, {0x8'0000'0000, 0x8'0000'0000}, [this] { ++events; }};
};

// One access, of any size from 1 to 8, anywhere that is of interest.
void access(Everything& all, std::mt19937_64& random) {
  std::array<std::byte, 8> bytes;
  const auto value = random();
  std::memcpy(bytes.data(), &value, sizeof value);
  const auto data = std::span{bytes}.first(1 + random() % 8);
  const bool write = random() % 2 == 0;
  const auto any_port = random() % 0x10000;
  const std::array<std::uint64_t, 6> ports{any_port,
                                           serial_places[0].port + random() % 8,
                                           PciRoot::port + random() % 8,
                                           PowerPorts::port + random() % 4,
                                           PanicPort::port,
                                           KeyboardReset::port};
  // Bus 0 and those of two ports, whose own registers come often.
  const auto slot = std::array<std::uint64_t, 7>{
      0, 1 << 15, 23 << 15, 24 << 15, 24 << 15 | 1 << 12, 1 << 20, 3 << 20}[random() % 7];
  const std::array<std::uint64_t, 7> places{
      PciRoot::ecam_address + slot + random() % 0x60,
      PciRoot::ecam_address + slot + random() % 0x1000,
      PciRoot::ecam_address + random() % PciRoot::ecam_size,
      Ioapic::base_address + random() % 0x20,
      Ioapic::base_address + random() % 2 * 0x10,
      PciRoot::low_window.start + random() % PciRoot::low_window.size,
      random()};
  const bool port = random() % 2 == 0;
  auto& bus = port ? all.ports : all.memory;
  const auto address = port ? ports[random() % ports.size()] : places[random() % places.size()];
  if (write) {
    bus.write(address, data);
  } else {
    bus.read(address, data);
  }
}

TEST(Hostile, RandomAccessesEverywhere) {
  std::uint64_t events = 0, sent = 0, interrupts = 0, let_go = 0;
  for (const std::uint64_t seed : {1, 2, 3}) {
    Everything all;
    std::mt19937_64 random{seed};
    for (int i = 0; i < 200'000; ++i) {
      access(all, random);
      if (i % 256 == 0) all.act(random());
      if (i % 64 == 0) all.ioapic.end_of_interrupt(static_cast<std::uint8_t>(random()));
    }
    events += all.events;
    sent += all.sent;
    interrupts += all.output.sent;
    let_go += all.let_go;
  }
  // It reached what it was meant to reach.
  EXPECT_GT(events, 0u);
  EXPECT_GT(sent, 0u);
  EXPECT_GT(interrupts, 0u);
  EXPECT_GT(let_go, 0u);
}

TEST(Hostile, EveryByteOfEveryConfigurationSpaceTakesEveryValueOfItsCorners) {
  Everything all;
  for (const std::uint64_t slot : {0, 1, 2, 23, 24, 25, 32}) {  // 32: bus 1
    for (std::uint64_t at = 0; at < 0x1000; ++at) {
      const auto address = PciRoot::ecam_address + (slot << 15) + at;
      for (const auto value : {0x00, 0xff, 0x06, 0x02}) {
        const std::array bytes{static_cast<std::byte>(value)};
        EXPECT_TRUE(all.memory.write(address, bytes));
      }
      std::array<std::byte, 8> bytes;
      all.memory.read(address, bytes);
    }
  }
  std::array<std::byte, 4> identity;
  all.memory.read(PciRoot::ecam_address + (23u << 15), identity);
  EXPECT_EQ(identity[0], std::byte{1});
}

TEST(Power, OnlyTheRightValuesEndTheGuest) {
  std::vector<GuestEvent> events;
  std::vector<bool> edges;
  const auto note = [&](GuestEvent event) { events.push_back(event); };
  PowerPorts power{note, [&](bool high) { edges.push_back(high); }};
  KeyboardReset keyboard{note};
  PanicPort panic{note};
  const auto write = [](BusDevice& device, std::uint64_t offset, unsigned value) {
    const std::array bytes{static_cast<std::byte>(value)};
    device.write(offset, bytes);
  };
  write(power, 0, 5 << 2);           // no enable
  write(power, 0, 3 << 2 | 1 << 5);  // another state
  write(power, 1, 5 << 2 | 1 << 5);  // the status register
  write(keyboard, 0, 0xed);
  write(panic, 0, 0);
  EXPECT_TRUE(events.empty());
  write(power, 0, 5 << 2 | 1 << 5);
  write(keyboard, 0, 0xfe);
  write(panic, 0, 1);
  write(panic, 0, 2);
  EXPECT_EQ(events, (std::vector{GuestEvent::power_off, GuestEvent::reset, GuestEvent::panicked,
                                 GuestEvent::crash_loaded}));
  power.press_power_button();
  EXPECT_EQ(edges, (std::vector{true, false}));
  std::array<std::byte, 1> byte{};
  power.read(3, byte);
  EXPECT_EQ(byte[0], std::byte{1});
  power.read(3, byte);
  EXPECT_EQ(byte[0], std::byte{0});  // reading took it
}

}  // namespace

}  // namespace millrace::vmm

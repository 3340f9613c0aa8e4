// libFuzzer target for a hostile guest: the input is a script of accesses to every port and address
// of a machine with real devices and no KVM, and of what a back-end does meanwhile. After each
// script the machine is taken down, and nothing of the host's may be left over.
//
// Script, repeated until the input ends: an operation byte, then its operands.
//   bit 0 write, bit 1 memory (else a port), bits 2..4 the region, bits 5..7 size 1..8: then a
//   16-bit offset, and for a write the bytes. Port regions 7 and memory region 7: not the guest but
//   the back-end and the interrupt controller do something.
#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/log.hpp"
#include "vhost/testing/harness.hpp"
#include "virtio/wire/pci.hpp"
#include "vmm/ioapic.hpp"
#include "vmm/pci_root.hpp"
#include "vmm/platform.hpp"
#include "vmm/power.hpp"
#include "vmm/serial.hpp"
#include "vmm/testing/fake_backend.hpp"
#include "vmm/testing/fake_machine.hpp"
#include "vmm/testing/fuzz_input.hpp"
#include "vmm/virtio_pci.hpp"

namespace {

using namespace millrace;
using namespace millrace::vmm;
using vmm::testing::FakeBackend, vmm::testing::FakeDoorbells, vmm::testing::FakeInterrupts;
using vmm::testing::FuzzInput;

constexpr unsigned queues = 3;
constexpr std::array<unsigned, 2> slots{1, 31};
constexpr std::uint64_t mapped = PciRoot::low_window.start;  // where BARs are put at the start

class Output final : public IoapicOutput {
 public:
  void send(const MsiMessage&) override {}
  void report_end(unsigned pin, const std::optional<MsiMessage>&) override { CHECK(pin < 24); }
};

class Board {
 public:
  Board() {
    CHECK(memory_.map(Ioapic::base_address, Ioapic::size, ioapic_));
    CHECK(ports_.map(PowerPorts::port, PowerPorts::size, power_));
    CHECK(ports_.map(KeyboardReset::port, 1, keyboard_));
    CHECK(ports_.map(PanicPort::port, 1, panic_));
    CHECK(ports_.map(serial_places[0].port, Serial::size, serial_));
    CHECK(root_.start());
    for (const auto slot : slots) plug(slot);
    for (const auto slot : slots) enable(slot);
  }

  void access(std::uint8_t operation, FuzzInput& input) {
    const bool write = (operation & 1) != 0, memory = (operation & 2) != 0;
    const unsigned region = operation >> 2 & 7, size = 1u + (operation >> 5);
    const auto offset = input.take<std::uint16_t>();
    if (region == 7) return event(memory, offset);
    auto& bus = memory ? memory_ : ports_;
    const auto address = memory ? place(region, offset) : port(region, offset);
    auto bytes = write ? input.take_bytes(size) : std::vector<std::byte>(size);
    if (write) {
      bus.write(address, bytes);
    } else {
      bus.read(address, bytes);
    }
  }

 private:
  void plug(unsigned slot) {
    auto backend = std::make_unique<FakeBackend>(queues);
    backends_.push_back(backend.get());
    backend->offered = 0x1'3000'0020 | 1ull << 40;
    auto parts = VirtioPci::make_parts(std::move(backend), interrupts_);
    CHECK(parts);
    CHECK(root_.plug(slot, std::make_unique<VirtioPci>(std::uint8_t{2}, 0x018000u,
                                                       *std::move(parts), doorbells_)));
  }
  // BARs at known places, so that an input need not find them; it may move them.
  void enable(unsigned slot) {
    const auto config = PciRoot::ecam_address + (std::uint64_t{slot} << 15);
    const auto base = static_cast<std::uint32_t>(mapped + slot * 0x10'0000ull);
    const auto put = [&](unsigned at, std::uint32_t value) {
      memory_.write(config + at, std::as_bytes(std::span{&value, 1}));
    };
    put(0x10, base);
    put(0x20, base + 0x8'0000);
    put(0x24, 0);
    put(0x04, 6);
  }

  // What a good driver does, so that an input need not find out: from the reset to DRIVER_OK.
  void drive(unsigned slot) {
    using virtio::wire::PciCommon;
    const auto table = mapped + slot * 0x10'0000ull, common = table + 0x8'0000;
    const auto put = [&](std::uint64_t address, auto value) {
      memory_.write(address, std::as_bytes(std::span{&value, 1}));
    };
    enable(slot);
    for (unsigned vector = 0; vector <= queues; ++vector) {
      put(table + vector * 16, std::uint32_t{0xfee0'0000});
      put(table + vector * 16 + 8, std::uint32_t{0x40 + vector});
      put(table + vector * 16 + 12, std::uint32_t{0});
    }
    const auto status = common + offsetof(PciCommon, status);
    for (const std::uint8_t step : {0, 1, 3}) put(status, step);
    put(common + offsetof(PciCommon, driver_feature_select), std::uint32_t{1});
    put(common + offsetof(PciCommon, driver_feature), std::uint32_t{1});  // VERSION_1
    put(status, std::uint8_t{11});
    put(common + offsetof(PciCommon, config_vector), std::uint16_t{0});
    for (std::uint16_t queue = 0; queue < queues; ++queue) {
      put(common + offsetof(PciCommon, queue_select), queue);
      put(common + offsetof(PciCommon, queue_vector), static_cast<std::uint16_t>(queue + 1));
      put(common + offsetof(PciCommon, queue_descriptors), std::uint32_t{0x1000});
      put(common + offsetof(PciCommon, queue_driver), std::uint32_t{0x2000});
      put(common + offsetof(PciCommon, queue_device), std::uint32_t{0x3000});
      put(common + offsetof(PciCommon, queue_enable), std::uint16_t{1});
    }
    put(status, std::uint8_t{15});
  }

  static std::uint64_t port(unsigned region, std::uint64_t offset) {
    switch (region) {
      case 0:
        return serial_places[0].port + offset % 8;
      case 1:
        return PciRoot::port + offset % 8;
      case 2:
        return PowerPorts::port + offset % 8;
      case 3:
        return PanicPort::port;
      case 4:
        return KeyboardReset::port;
      default:
        return offset;
    }
  }
  static std::uint64_t place(unsigned region, std::uint64_t offset) {
    const auto slot = slots[offset & 1];
    switch (region) {
      case 0:
        return PciRoot::ecam_address + (std::uint64_t{slot} << 15) + (offset >> 1 & 0xfff);
      case 1:
        return PciRoot::ecam_address + offset * 61;
      case 2:
        return Ioapic::base_address + offset % 0x30;
      case 3:
        return mapped + slot * 0x10'0000ull + (offset >> 1 & 0xfff);  // MSI-X
      case 4:
        return mapped + slot * 0x10'0000ull + 0x8'0000 + (offset >> 1 & 0x3fff);  // virtio
      case 5:
        return mapped + offset * 4093ull;
      default:
        return offset * 0x1'0000'0001ull * 4093;
    }
  }

  // What happens while the guest does all this. A back-end stops when it was told so.
  void event(bool memory, std::uint16_t word) {
    auto& backend = *backends_[word & 1];
    const auto what = word >> 1 & 7, argument = word >> 4;
    if (memory && what == 0) return drive(slots[word & 1]);
    if (memory) return ioapic_.end_of_interrupt(static_cast<std::uint8_t>(argument));
    switch (what) {
      case 0:
        if (stopped_[word & 1] < backend.stops) {
          stopped_[word & 1] = backend.stops;
          backend.finish_stop();
        }
        return;
      case 1:
        if (backend.queue_stops.empty()) return;
        {
          const auto queue = backend.queue_stops.back();
          backend.queue_stops.pop_back();
          if (backend.active) backend.finish_queue_stop(queue);
        }
        return;
      case 2:
        backend.space[0] ^= std::byte{1};
        return backend.listener->config_changed(backend.space);
      case 3:
        return backend.listener->needs_reset();
      case 4:
        backend.accept_writes = !backend.accept_writes;
        return;
      case 5:
        doorbells_.refuse = !doorbells_.refuse;
        return;
      case 6:
        return power_.press_power_button();
      default:
        return ioapic_.set_line(static_cast<unsigned>(argument) % 24, (argument & 0x100) != 0);
    }
  }

  Bus ports_, memory_;
  Output output_;
  FakeInterrupts interrupts_;
  FakeDoorbells doorbells_;
  Ioapic ioapic_{output_};
  GuestEventHandler on_event_ = [](GuestEvent) {};
  PowerPorts power_{on_event_, [this](bool high) { ioapic_.set_line(power_pin, high); }};
  KeyboardReset keyboard_{on_event_};
  PanicPort panic_{on_event_};
  Serial serial_{{.interrupt = [this](bool high) { ioapic_.set_line(4, high); },
                  .transmit = [](std::byte) {},
                  .room = [] {}}};
  std::vector<FakeBackend*> backends_;
  std::array<unsigned, slots.size()> stopped_{};
  PciRoot root_{ports_, memory_, {0x8'0000'0000, 0x8'0000'0000}, [] {}};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  const auto before = vhost::testing::open_fds();
  {
    Board board;
    FuzzInput input{data, size};
    while (!input.empty()) {
      const auto operation = input.take<std::uint8_t>();
      board.access(operation, input);
    }
  }
  CHECK(vhost::testing::open_fds() == before);
  return 0;
}

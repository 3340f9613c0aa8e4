// The VMM's devices in front of the daemon's: a driver that knows a PCI function and guest memory,
// real sockets, real devices, and back-ends that go away and come again.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "blk/memory_backend.hpp"
#include "tests/vmm_guest.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/blk.hpp"
#include "virtio/wire/net.hpp"
#include "vmm/testing/fake_machine.hpp"
#include "vmm/vhost_device.hpp"

namespace millrace::tests {
namespace {

namespace nf = virtio::wire::net_feature;
namespace vf = virtio::feature;
namespace wire = virtio::wire;
using namespace std::chrono_literals;
using vmm::testing::FakeDoorbells, vmm::testing::FakeInterrupts, vmm::testing::PciDriver;

constexpr auto patience = 20s;  // far longer than anything takes
constexpr std::uint64_t ring_memory = 0x10'0000, data_memory = 0x100'0000;

// A device of a guest, as a driver sees it.
struct Device {
  Device(vmm::DeviceKind kind, const vmm::VhostDeviceOptions& options, const vmm::GuestRam& ram) {
    auto made = vmm::VhostDevice::make(kind, options, doorbells, interrupts, ram);
    if (!made) std::fprintf(stderr, "%s\n", made.error().message.c_str());
    CHECK(made.has_value());
    function = std::move(made).value();
    driver = std::make_unique<PciDriver>(*function);
  }
  ~Device() { driver.reset(); }
  [[nodiscard]] bool interrupted(unsigned vector) {
    return PciDriver::until(patience, [&] { return interrupts.vectors.at(vector)->delivered(); });
  }
  void kick(std::uint16_t queue) { CHECK(doorbells.ring(driver->doorbell(queue))); }
  void set_up(std::uint16_t index, const GuestQueue& queue, std::uint16_t size = 64) {
    driver->set_up_queue(index, size, queue.descriptors(), queue.driver(), queue.device(),
                         static_cast<std::uint16_t>(index + 1));
  }

  FakeInterrupts interrupts;
  FakeDoorbells doorbells;
  std::unique_ptr<vmm::VhostDevice> function;
  std::unique_ptr<PciDriver> driver;
};

vmm::GuestRam make_ram() {
  auto ram = vmm::GuestRam::make({.bytes = 64ull << 20});
  CHECK(ram.has_value());
  return std::move(ram).value();
}

std::string folder_of_test() {
  auto folder = (std::filesystem::temp_directory_path() / "millrace-vmm-XXXXXX").string();
  CHECK(::mkdtemp(folder.data()) != nullptr);
  return folder;
}

// A memory disk that takes requests and never gives one back.
class Swallowing final : public blk::Backend {
 public:
  [[nodiscard]] const blk::Geometry& geometry() const override { return inner_->geometry(); }
  [[nodiscard]] blk::BackendStatus status() const override { return inner_->status(); }
  [[nodiscard]] std::unique_ptr<blk::Channel> make_channel(unsigned,
                                                           blk::QueueStatistics&) override {
    return std::make_unique<Sink>();
  }
  base::Result<std::uint64_t> resize(std::uint64_t bytes) override { return inner_->resize(bytes); }

 private:
  class Sink final : public blk::Channel {
    void attached(base::Reactor&) noexcept override {}
    void detached(base::Reactor&) noexcept override {}
    void submit(blk::IoList& burst) noexcept override {
      while (burst.pop() != nullptr) {
      }
    }
    bool poll(blk::IoList&) noexcept override { return false; }
    [[nodiscard]] bool pending() const noexcept override { return false; }
  };
  std::unique_ptr<Backend> inner_ = std::move(*blk::MemoryBackend::make_ram(1 << 20, false));
};

// A disk's driver: one queue, requests of 512 bytes.
class DiskDriver {
 public:
  DiskDriver(Device& device, const vmm::GuestRam& ram, bool packed)
      : device_{device},
        ram_{ram},
        packed_{packed},
        queue_{ram, {.address = ring_memory, .size = 64, .chain = 3, .packed = packed}} {}

  void start() {
    queue_.clear();
    auto features = device_.driver->offered();
    if (!packed_) features &= ~vf::ring_packed;
    ASSERT_EQ((features & vf::ring_packed) != 0, packed_);
    ASSERT_TRUE(device_.driver->negotiate(features & ~vf::event_idx));
    device_.driver->set_common(offsetof(wire::PciCommon, config_vector), std::uint16_t{0});
    device_.set_up(0, queue_);
    device_.driver->enable_vectors(2, 0x30);
    device_.driver->drive();
  }
  GuestQueue& queue() { return queue_; }

  std::uint16_t submit(unsigned slot, wire::BlkType type, std::uint64_t sector) {
    const auto at = place(slot);
    const wire::BlkHeader header{base::le32{static_cast<std::uint32_t>(type)}, base::le32{0},
                                 base::le64{sector}};
    std::memcpy(ram_.at(at, sizeof header).data(), &header, sizeof header);
    status(slot) = std::byte{0xff};
    return queue_.offer({{at, sizeof header, false},
                         {at + 0x1000, 512, type == wire::BlkType::in},
                         {at + 0x800, 1, true}});
  }
  std::byte& status(unsigned slot) { return ram_.at(place(slot) + 0x800, 1)[0]; }
  std::span<std::byte> data(unsigned slot) { return ram_.at(place(slot) + 0x1000, 512); }
  // Waits for `count` chains to come back.
  bool finished(unsigned count) {
    return PciDriver::until(patience, [&] {
      while (count != 0 && queue_.poll()) --count;
      return count == 0;
    });
  }
  bool served(unsigned mark) {
    std::memset(data(0).data(), static_cast<int>(mark), 512);
    submit(0, wire::BlkType::out, 3);
    device_.kick(0);
    if (!finished(1) || status(0) != std::byte{0}) return false;
    submit(1, wire::BlkType::in, 3);
    device_.kick(0);
    return finished(1) && status(1) == std::byte{0} &&
           std::memcmp(data(0).data(), data(1).data(), 512) == 0;
  }

 private:
  static std::uint64_t place(unsigned slot) { return data_memory + 0x2000ull * slot; }
  Device& device_;
  const vmm::GuestRam& ram_;
  const bool packed_;
  GuestQueue queue_;
};

class DiskOfGuest : public ::testing::TestWithParam<bool> {
 protected:
  ~DiskOfGuest() override { std::filesystem::remove_all(folder); }
  const std::string folder = folder_of_test(), link = folder + "/disk.sock";
  const vmm::GuestRam ram = make_ram();
  static std::string add_disk(Backend& backend) { return backend.add_disk(ram_disk("disk")); }
};

TEST_P(DiskOfGuest, IsDrivenFromDiscoveryToInterrupt) {
  Backend backend;
  Device device{vmm::DeviceKind::blk, {.socket = add_disk(backend)}, ram};
  EXPECT_TRUE(device.function->connected());
  EXPECT_EQ(device.driver->config_read<std::uint32_t>(0), 0x1042'1af4u);
  EXPECT_EQ(device.driver->device<std::uint64_t>(0), (1u << 20) / 512);
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  EXPECT_TRUE(disk.served(0x5a));
  EXPECT_TRUE(device.interrupted(1));
  EXPECT_EQ(device.driver->status(), 15);
}

TEST_P(DiskOfGuest, IsResetAndDrivenAgain) {
  Backend backend;
  Device device{vmm::DeviceKind::blk, {.socket = add_disk(backend)}, ram};
  DiskDriver disk{device, ram, GetParam()};
  for (unsigned round = 1; round <= 3; ++round) {
    disk.start();
    EXPECT_TRUE(disk.served(round));
    ASSERT_TRUE(device.driver->reset(patience));
    EXPECT_FALSE(backend.queue("disk", 0).started);
    EXPECT_EQ(device.doorbells.count(), 0u);
  }
}

TEST_P(DiskOfGuest, ResetsOneQueue) {
  Backend backend;
  auto config = ram_disk("disk");
  config.ring_reset = true;
  Device device{vmm::DeviceKind::blk, {.socket = backend.add_disk(config)}, ram};
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  for (unsigned round = 1; round <= 3; ++round) {
    EXPECT_TRUE(disk.served(round));
    device.driver->select(0);
    device.driver->set_common(offsetof(wire::PciCommon, queue_reset), std::uint16_t{1});
    ASSERT_TRUE(PciDriver::until(patience, [&] {
      return device.driver->common<std::uint16_t>(offsetof(wire::PciCommon, queue_reset)) == 0;
    }));
    disk.queue().clear();
    device.set_up(0, disk.queue());
  }
  EXPECT_TRUE(disk.served(9));
}

TEST_P(DiskOfGuest, SurvivesARestartOfItsBackend) {
  ServedProcess first{link, add_disk}, second{link, add_disk};
  first.start();
  Device device{vmm::DeviceKind::blk, {.socket = link}, ram};
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  ASSERT_TRUE(disk.served(1));
  first.stop();
  ASSERT_TRUE(PciDriver::until(patience, [&] { return !device.function->connected(); }));
  disk.submit(4, wire::BlkType::in, 0);
  device.kick(0);
  while (device.interrupts.vectors[1]->delivered()) {
  }
  second.start();
  EXPECT_TRUE(disk.finished(1)) << "what was offered meanwhile";
  EXPECT_TRUE(device.interrupted(1));
  EXPECT_EQ(disk.status(4), std::byte{0});
  EXPECT_TRUE(disk.served(2));
}

// What the first back-end took and did not finish is finished by the second.
TEST_P(DiskOfGuest, LosesNothingWhenItsBackendIsKilled) {
  ServedProcess first{link, [](Backend& backend) {
                        return backend.add_disk(ram_disk("disk"), std::make_unique<Swallowing>());
                      }};
  ServedProcess second{link, add_disk}, third{link, add_disk};
  first.start();
  Device device{vmm::DeviceKind::blk, {.socket = link}, ram};
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  for (unsigned slot = 0; slot < 10; ++slot) disk.submit(slot, wire::BlkType::in, slot);
  device.kick(0);
  std::this_thread::sleep_for(100ms);  // long enough to take some; right in any case
  first.kill();
  for (unsigned slot = 10; slot < 12; ++slot) disk.submit(slot, wire::BlkType::in, slot);
  device.kick(0);
  second.start();
  EXPECT_TRUE(disk.finished(12));
  for (unsigned slot = 0; slot < 12; ++slot) EXPECT_EQ(disk.status(slot), std::byte{0}) << slot;
  EXPECT_TRUE(disk.served(3));
  second.kill();
  third.start();
  EXPECT_TRUE(disk.served(4));
  EXPECT_EQ(device.driver->status(), 15);
}

TEST_P(DiskOfGuest, IsResetWhileNobodyServesIt) {
  ServedProcess first{link, add_disk}, second{link, add_disk};
  first.start();
  Device device{vmm::DeviceKind::blk, {.socket = link}, ram};
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  ASSERT_TRUE(disk.served(1));
  first.kill();
  ASSERT_TRUE(device.driver->reset(patience));
  disk.start();
  disk.submit(0, wire::BlkType::in, 0);
  device.kick(0);
  second.start();
  EXPECT_TRUE(disk.finished(1));
  EXPECT_TRUE(disk.served(2));
}

// Whatever a guest writes to its registers, the device is whole after a reset.
TEST_P(DiskOfGuest, SurvivesAHostileDriver) {
  Backend backend;
  Device device{vmm::DeviceKind::blk, {.socket = add_disk(backend)}, ram};
  auto& driver = *device.driver;
  std::mt19937_64 random{GetParam() ? 5u : 6u};
  for (int round = 0; round < 40; ++round) {
    const auto address = [&] {
      return random() % 8 == 0 ? random()
                               : random() % 0x400'0000 & ~(random() % 4 == 0 ? 0 : 63ull);
    };
    driver.negotiate(driver.offered() & (random() | vf::version_1));
    driver.set_up_queue(0, static_cast<std::uint16_t>(1 << random() % 9), address(), address(),
                        address(), 1);
    driver.drive();
    driver.write(driver.doorbell(0), std::uint16_t{0});
    for (int i = 0; i < 100; ++i) {
      const auto at = driver.at(wire::PciCapability::common).address + random() % 64 / 2 * 2;
      if (random() % 2 == 0) driver.write(at, static_cast<std::uint16_t>(random() % 20));
      if (random() % 4 == 0) driver.write(at & ~7ull, address());
      if (random() % 8 == 0) driver.select(0);
      if (random() % 20 == 0) driver.set_status(static_cast<std::uint8_t>(random()));
      if (random() % 8 == 0) driver.write(driver.doorbell(0), std::uint16_t{0});
    }
    if (random() % 2 == 0) {
      ASSERT_TRUE(driver.reset(patience));
    }
  }
  ASSERT_TRUE(driver.reset(patience));
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  EXPECT_TRUE(disk.served(0x42));
}

TEST_P(DiskOfGuest, IsTakenAwayAtWork) {
  Backend backend;
  const auto socket = add_disk(backend);
  for (int round = 0; round < 3; ++round) {
    Device device{vmm::DeviceKind::blk, {.socket = socket}, ram};
    DiskDriver disk{device, ram, GetParam()};
    disk.start();
    for (unsigned slot = 0; slot < 8; ++slot) disk.submit(slot, wire::BlkType::in, slot);
    device.kick(0);
  }
  Device device{vmm::DeviceKind::blk, {.socket = socket}, ram};
  DiskDriver disk{device, ram, GetParam()};
  disk.start();
  EXPECT_TRUE(disk.served(1));
}

INSTANTIATE_TEST_SUITE_P(Rings, DiskOfGuest, ::testing::Values(false, true),
                         [](const auto& one) { return one.param ? "Packed" : "Split"; });

TEST(VmmBackend, WritebackModeIsTheDriversAndRestored) {
  const auto folder = folder_of_test();
  const auto link = folder + "/disk.sock";
  const auto add = [](Backend& backend) { return backend.add_disk(ram_disk("disk")); };
  ServedProcess first{link, add}, second{link, add};
  first.start();
  const auto ram = make_ram();
  Device device{vmm::DeviceKind::blk, {.socket = link}, ram};
  constexpr std::size_t field = offsetof(wire::BlkConfig, writeback);
  if ((device.driver->offered() & wire::blk_feature::config_wce) == 0) {
    GTEST_SKIP() << "this disk has no write-back mode to change";
  }
  DiskDriver disk{device, ram, false};
  disk.start();
  EXPECT_EQ(device.driver->device<std::uint8_t>(field), 1);
  device.driver->write(device.driver->at(wire::PciCapability::device).address + field,
                       std::uint8_t{0});
  EXPECT_EQ(device.driver->device<std::uint8_t>(field), 0);
  first.kill();
  second.start();
  ASSERT_TRUE(disk.served(1));
  EXPECT_EQ(device.driver->device<std::uint8_t>(field), 0);
  std::filesystem::remove_all(folder);
}

TEST(VmmBackend, SaysWhyThereIsNoDevice) {
  const auto ram = make_ram();
  FakeInterrupts interrupts;
  FakeDoorbells doorbells;
  const auto make = [&](vmm::DeviceKind kind, const vmm::VhostDeviceOptions& options) {
    const auto made = vmm::VhostDevice::make(kind, options, doorbells, interrupts, ram);
    return made ? std::string{} : made.error().message;
  };
  EXPECT_EQ(make(vmm::DeviceKind::blk, {.socket = "/nonexistent/s", .wait = false}),
            "/nonexistent/s: nobody serves this socket: start the back-end first, or let it wait");
  EXPECT_EQ(make(vmm::DeviceKind::blk, {.socket = "/nonexistent/s", .queue_size = 100}),
            "/nonexistent/s: queue_size=100 is no power of two from 2 to 32768");
  const base::Fd cancel{::eventfd(1, EFD_CLOEXEC)};
  EXPECT_EQ(make(vmm::DeviceKind::blk, {.socket = "/nonexistent/s", .cancel = cancel.get()}),
            "/nonexistent/s: no back-end came");
  Backend backend;
  const auto socket = backend.add_disk(ram_disk("disk"));
  EXPECT_EQ(
      make(vmm::DeviceKind::blk, {.socket = socket, .queues = 2}),
      socket + ": 2 queues are asked for, but the back-end has 1: ask for fewer, or give it more");
  EXPECT_EQ(make(vmm::DeviceKind::blk, {.socket = socket, .mac = {{2, 0, 0, 0, 0, 1}}}),
            socket + ": a disk has no mac: leave it out");
  EXPECT_EQ(make(vmm::DeviceKind::net, {.socket = socket}),
            socket + ": this is the socket of a disk, not of a NIC");
  const auto other = backend.add_nic({.name = "nic"});
  EXPECT_EQ(make(vmm::DeviceKind::blk, {.socket = other}),
            other + ": this is the socket of a NIC, not of a disk");
  interrupts.vectors_max = interrupts.vectors.size() + 1;
  EXPECT_EQ(make(vmm::DeviceKind::blk, {.socket = socket}),
            socket + ": no interrupt route is left");
}

// --- Network ---

using Mac = std::array<std::uint8_t, 6>;
constexpr std::uint32_t frame_size = 60, buffer_size = 2048;

net::Config nic(const std::string& name, std::uint8_t id) {
  net::Config config;
  config.name = name;
  config.pairs = 2;
  config.mac = vswitch::Mac{2, 0, 0, 0, 0, id};
  config.mtu = 1500;
  config.control_queue = true;
  return config;
}

// A NIC's driver: both pairs and the control queue.
struct NicDriver {
  NicDriver(const std::string& socket, const vmm::GuestRam& memory, std::uint64_t place,
            bool packed)
      : ram{memory}, base{place}, device{vmm::DeviceKind::net, {.socket = socket}, memory} {
    for (unsigned i = 0; i < 5; ++i) {
      const std::uint16_t chain = i == 4 ? 3 : 1;
      queues.push_back(std::make_unique<GuestQueue>(
          ram, GuestQueue::Layout{base + 0x10000 * i, 64, chain, packed}));
    }
    auto features = device.driver->offered() & ~vf::event_idx;
    if (!packed) features &= ~vf::ring_packed;
    CHECK((features & nf::mq) != 0 && (features & nf::ctrl_vq) != 0);
    CHECK(device.driver->negotiate(features));
    for (std::uint16_t i = 0; i < 5; ++i) device.set_up(i, *queues[i]);
    device.driver->enable_vectors(6, 0x50);
    device.driver->drive();
    for (const std::uint16_t queue : std::initializer_list<std::uint16_t>{0, 2}) {
      for (unsigned slot = 0; slot < 8; ++slot) give(queue, slot);
      device.kick(queue);
    }
  }
  void give(std::uint16_t queue, unsigned slot) {
    const auto at = base + 0x10'0000 + queue * 0x10000ull + slot * buffer_size;
    const auto id = queues[queue]->offer({{at, buffer_size, true}});
    slots[{queue, id}] = slot;
  }
  [[nodiscard]] Mac mac() {
    Mac out;
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = device.driver->device<std::uint8_t>(i);
    return out;
  }
  void send(const Mac& to) {
    const auto at = base + 0x20'0000;
    const auto bytes = ram.at(at, 12 + frame_size);
    std::memset(bytes.data(), 0, bytes.size());
    std::memcpy(bytes.data() + 12, to.data(), to.size());
    const auto from = mac();
    std::memcpy(bytes.data() + 18, from.data(), from.size());
    queues[1]->offer({{at, 12 + frame_size, false}});
    device.kick(1);
    CHECK(PciDriver::until(patience, [&] { return queues[1]->poll().has_value(); }));
  }
  // Whether a frame from `from` came in on either pair.
  bool received(const Mac& from) {
    for (const std::uint16_t queue : std::initializer_list<std::uint16_t>{0, 2}) {
      while (const auto id = queues[queue]->poll()) {
        const auto slot = slots.at({queue, *id});
        const auto at = base + 0x10'0000 + queue * 0x10000ull + slot * buffer_size;
        const bool mine = std::memcmp(ram.at(at + 18, 6).data(), from.data(), 6) == 0;
        give(queue, slot);
        device.kick(queue);
        if (mine) return true;
      }
    }
    return false;
  }
  // A command on the control queue; its answer.
  std::uint8_t command(std::uint8_t class_id, std::uint8_t what, std::uint16_t value) {
    const auto at = base + 0x21'0000;
    auto bytes = ram.at(at, 64);
    bytes[0] = std::byte{class_id};
    bytes[1] = std::byte{what};
    std::memcpy(bytes.data() + 16, &value, sizeof value);
    bytes[32] = std::byte{0xff};
    queues[4]->offer({{at, 2, false}, {at + 16, 2, false}, {at + 32, 1, true}});
    device.kick(4);
    CHECK(PciDriver::until(patience, [&] { return queues[4]->poll().has_value(); }));
    return std::to_integer<std::uint8_t>(bytes[32]);
  }

  const vmm::GuestRam& ram;
  const std::uint64_t base;
  Device device;
  std::vector<std::unique_ptr<GuestQueue>> queues;
  std::map<std::pair<std::uint16_t, std::uint16_t>, unsigned> slots;
};

// Whether frames of `from` come to `to`: one that is sent before the other's queues are served is
// lost, as on a wire.
bool reaches(NicDriver& from, NicDriver& to) {
  return PciDriver::until(patience, [&] {
    from.send(to.mac());
    const auto seen = [&] { return to.received(from.mac()); };
    return PciDriver::until(50ms, seen);
  });
}

class NicOfGuest : public ::testing::TestWithParam<bool> {
 protected:
  ~NicOfGuest() override { std::filesystem::remove_all(folder); }
  const std::string folder = folder_of_test(), link = folder + "/a";
  const vmm::GuestRam ram = make_ram();
};

TEST_P(NicOfGuest, TalksAndHandsItsControlQueueOver) {
  Backend backend;
  NicDriver a{backend.add_nic(nic("a", 1)), ram, 0x100'0000, GetParam()};
  NicDriver b{backend.add_nic(nic("b", 2)), ram, 0x200'0000, GetParam()};
  EXPECT_EQ(a.mac(), (Mac{2, 0, 0, 0, 0, 1}));
  EXPECT_EQ(a.device.driver->device<std::uint16_t>(offsetof(wire::NetConfig, max_virtqueue_pairs)),
            2);
  EXPECT_TRUE(reaches(a, b));
  EXPECT_TRUE(reaches(b, a));
  using namespace wire;
  EXPECT_EQ(a.command(net_class::mq, net_mq_command::vq_pairs_set, 2), net_control_ok);
  EXPECT_EQ(a.command(net_class::mq, net_mq_command::vq_pairs_set, 7), net_control_error);
  EXPECT_TRUE(a.device.interrupted(5));
  EXPECT_TRUE(reaches(b, a));
}

// A port that keeps its control queue to itself, as all other front-ends want it.
TEST(VmmBackend, ANicHasOnePairWhereNobodyServesAControlQueue) {
  const auto ram = make_ram();
  Backend backend;
  auto config = nic("a", 1);
  config.control_queue = false;
  const auto socket = backend.add_nic(config);
  {
    const Device device{vmm::DeviceKind::net, {.socket = socket}, ram};
    EXPECT_EQ(device.driver->offered() & (nf::mq | nf::ctrl_vq | nf::mac | nf::mtu), 0u);
    EXPECT_EQ(device.driver->common<std::uint16_t>(offsetof(wire::PciCommon, num_queues)), 2);
  }
  const Device device{vmm::DeviceKind::net, {.socket = socket, .mac = Mac{2, 0, 0, 0, 0, 9}}, ram};
  EXPECT_NE(device.driver->offered() & nf::mac, 0u);
  EXPECT_EQ(device.driver->device<std::uint8_t>(5), 9);
  EXPECT_EQ(device.driver->device<std::uint16_t>(offsetof(wire::NetConfig, status)),
            wire::net_status_link_up);
}

// Both NICs' sockets come back with the second back-end: one link to each, made by its process.
TEST_P(NicOfGuest, TalksAgainAfterItsBackendWasKilled) {
  const auto add = [this](Backend& backend) {
    const auto other = folder + "/b";
    std::filesystem::remove(other);
    std::filesystem::create_symlink(backend.add_nic(nic("b", 2)), other);
    return backend.add_nic(nic("a", 1));
  };
  ServedProcess first{link, add}, second{link, add};
  first.start();
  NicDriver a{link, ram, 0x100'0000, GetParam()};
  NicDriver b{folder + "/b", ram, 0x200'0000, GetParam()};
  EXPECT_TRUE(reaches(a, b));
  first.kill();
  EXPECT_TRUE(PciDriver::until(patience, [&] {
    return !a.device.function->connected() && !b.device.function->connected();
  }));
  second.start();
  EXPECT_TRUE(PciDriver::until(
      patience, [&] { return a.device.function->connected() && b.device.function->connected(); }));
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(reaches(a, b));
    EXPECT_TRUE(reaches(b, a));
  }
  EXPECT_EQ(a.command(wire::net_class::mq, wire::net_mq_command::vq_pairs_set, 1),
            wire::net_control_ok);
}

INSTANTIATE_TEST_SUITE_P(Rings, NicOfGuest, ::testing::Values(false, true),
                         [](const auto& one) { return one.param ? "Packed" : "Split"; });

}  // namespace
}  // namespace millrace::tests

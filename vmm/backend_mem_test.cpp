// Memory devices (virtio-mem): where their regions lie, what their back-ends are told of them, and
// a configuration space that changes without notice.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <atomic>
#include <cstring>

#include "virtio/features.hpp"
#include "virtio/wire/mem.hpp"
#include "virtio/wire/pci.hpp"
#include "vmm/backend_link.hpp"
#include "vmm/boot_parts.hpp"
#include "vmm/mem_place.hpp"
#include "vmm/testing/fake_backend.hpp"
#include "vmm/testing/fake_machine.hpp"
#include "vmm/testing/pci_driver.hpp"
#include "vmm/testing/scripted_backend.hpp"
#include "vmm/virtio_pci.hpp"

namespace millrace::vmm {
namespace {

using testing::PciDriver, testing::ScriptedBackend;
using virtio::wire::MemConfig;
using Request = vhost::wire::Request;
constexpr std::uint64_t mebibyte = 1 << 20, gibibyte = 1 << 30;

bool until(const std::function<bool()>& done) {
  return PciDriver::until(std::chrono::seconds{20}, done);
}

GuestRam ram_of(RamConfig config) {
  auto ram = GuestRam::make(config);
  EXPECT_TRUE(ram) << ram.error().message;
  return *std::move(ram);
}

TEST(ManagedRam, LiesBehindAllThatMayBeAddedAndCostsNothing) {
  auto ram = ram_of({.bytes = 256 * mebibyte,
                     .prefault = true,
                     .bytes_most = 512 * mebibyte,
                     .slots = 2,
                     .managed = {gibibyte, 3 * gibibyte}});
  ASSERT_EQ(ram.regions().size(), 3u);
  EXPECT_EQ(ram.managed(0).guest_address, 6 * gibibyte) << "a multiple of 2 GiB";
  EXPECT_EQ(ram.managed(1).guest_address, 8 * gibibyte);
  EXPECT_EQ(ram.end_of_all(), 11 * gibibyte);
  struct stat file {};
  ASSERT_EQ(::fstat(ram.managed(1).file, &file), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(file.st_size), 3 * gibibyte);
  EXPECT_EQ(file.st_blocks, 0);
  const auto bytes = ram.at(8 * gibibyte, 3 * gibibyte);
  ASSERT_FALSE(bytes.empty());
  bytes.back() = std::byte{1};
  // What is added comes where it would have come without.
  auto piece = ram.make_piece(128 * mebibyte);
  ASSERT_TRUE(piece) << piece.error().message;
  EXPECT_EQ(piece->region().guest_address, 4 * gibibyte);
  EXPECT_FALSE(piece->region().managed);
  ram.add(*std::move(piece), [] {});
  EXPECT_EQ(ram.regions().size(), 4u);
  auto moved = std::move(ram);
  EXPECT_EQ(moved.managed(0).size, gibibyte);
  EXPECT_EQ(moved.end_of_all(), 11 * gibibyte);
}

TEST(ManagedRam, IsNoMemoryForTheKernelThatBoots) {
  const auto ram = ram_of({.bytes = 256 * mebibyte, .managed = {gibibyte}});
  for (const auto& entry : make_memory_map(ram)) {
    EXPECT_LT(entry.address, ram.managed(0).guest_address);
  }
}

TEST(ManagedRam, SizesThatCannotBe) {
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{2 * mebibyte},
                                   std::uint64_t{129 * mebibyte}, ~std::uint64_t{0} << 30}) {
    const auto made = GuestRam::make({.bytes = 256 * mebibyte, .managed = {size}});
    ASSERT_FALSE(made) << size;
    EXPECT_NE(made.error().message.find("a multiple of 128 MiB"), std::string::npos);
  }
  RamConfig many{.bytes = 256 * mebibyte};
  many.managed.assign(GuestRam::managed_max + 1, gibibyte);
  EXPECT_FALSE(GuestRam::make(many));
}

TEST(MemPlace, LargeRegionsComeInLargerBlocks) {
  const auto block_of = [](std::uint64_t size) {
    MemConfig config{};
    const auto bytes = mem_place_of({.guest_address = 8 * gibibyte, .size = size});
    EXPECT_EQ(bytes.size(), virtio::wire::mem_place_size);
    std::memcpy(&config, bytes.data(), bytes.size());
    EXPECT_EQ(config.addr.host(), 8 * gibibyte);
    EXPECT_EQ(config.region_size.host(), size);
    return config.block_size.host();
  };
  EXPECT_EQ(block_of(128 * mebibyte), 2 * mebibyte);
  EXPECT_EQ(block_of(32 * gibibyte), 2 * mebibyte);
  EXPECT_EQ(block_of(33 * gibibyte), 4 * mebibyte);
  EXPECT_EQ(block_of(1024 * gibibyte), 64 * mebibyte);
}

struct Listener final : VirtioBackend::Listener {
  void config_changed(std::span<const std::byte> bytes) override {
    MemConfig config{};
    std::memcpy(&config, bytes.data(), std::min(bytes.size(), sizeof config));
    plugged = config.plugged_size.host();
    ++changes;
  }
  void needs_reset() override {}
  void stopped() override {}
  void queue_stopped(unsigned) override {}
  std::atomic<std::uint64_t> plugged = 0;
  std::atomic<unsigned> changes = 0;
};

// A back-end that takes a place, and whose plugged size is the test's to say.
struct MemLink : ::testing::Test {
  MemLink() {
    backend.change([](ScriptedBackend& b) {
      b.features = virtio::feature::version_1 | virtio::feature::protocol_features |
                   virtio::wire::mem_feature::unplugged_inaccessible;
      b.queues = 1;
    });
    backend.script(Request::set_config, 0, [this](vhost::Frontend& peer, const auto& message) {
      std::memcpy(&space, message.payload.data() + 12, message.payload.size() - 12);
      return ScriptedBackend::acknowledge(peer, message, 0);
    });
    backend.script(Request::get_config, 0, [this](vhost::Frontend& peer, const auto& message) {
      auto payload = message.payload;
      space.plugged_size = base::le64{plugged};
      std::memcpy(payload.data() + 12, &space, sizeof space);
      return ScriptedBackend::reply(peer, message, payload);
    });
  }
  ~MemLink() override {
    if (link) link->close();
  }
  base::Result<void> make() {
    BackendLinkConfig config;
    config.socket = backend.path();
    config.shape.kind = DeviceKind::mem;
    config.told = mem_place_of(ram.managed(0));
    config.wait = false;
    auto made = BackendLink::make(std::move(config), ram);
    if (!made) return base::Unexpected{made.error()};
    link = std::move(made).value();
    link->open(listener);
    return {};
  }
  void run() {
    const VirtQueue queue{.index = 0,
                          .size = 64,
                          .descriptors = 0x10000,
                          .driver = 0x14000,
                          .device = 0x18000,
                          .kick = kick.get(),
                          .call = kick.get()};
    link->activate(virtio::feature::version_1, std::span{&queue, 1});
    ASSERT_TRUE(until([&] { return backend.count(Request::set_status) >= 1; }));
  }
  // At once, but on a machine so slow that the wait for a back-end ends first.
  bool looks_and_sees(std::uint64_t now) {
    return until([&] {
      link->refresh_config();
      return listener.plugged == now;
    });
  }
  MemConfig shown() const {
    MemConfig config{};
    const auto bytes = link->config();
    EXPECT_EQ(bytes.size(), sizeof config);
    std::memcpy(&config, bytes.data(), std::min(bytes.size(), sizeof config));
    return config;
  }

  GuestRam ram = ram_of({.bytes = 64 * mebibyte, .managed = {gibibyte}});
  base::Fd kick{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<std::uint64_t> plugged = 0;
  MemConfig space{};  // the back-end's
  ScriptedBackend backend;
  Listener listener;
  std::unique_ptr<BackendLink> link;
};

TEST_F(MemLink, EveryBackendIsToldThePlaceFirst) {
  ASSERT_TRUE(make());
  EXPECT_EQ(shown().addr.host(), ram.managed(0).guest_address);
  EXPECT_EQ(shown().region_size.host(), gibibyte);
  run();
  backend.hang_up();
  ASSERT_TRUE(until([&] { return backend.count(Request::set_config) == 2; }));
  ASSERT_TRUE(until([&] { return backend.count(Request::set_vring_enable) == 2; }));
}

TEST_F(MemLink, ABackendThatDoesNotTakeItIsNone) {
  backend.script(Request::set_config, 0, [](vhost::Frontend& peer, const auto& message) {
    return ScriptedBackend::acknowledge(peer, message, 0);
  });
  const auto made = make();
  ASSERT_FALSE(made);
  EXPECT_NE(made.error().message.find("this is no memory device"), std::string::npos);
  backend.refuse(Request::set_config, 0);
  EXPECT_FALSE(make());
}

TEST_F(MemLink, ADriverThatLooksSeesWhatIsTrue) {
  ASSERT_TRUE(make());
  plugged = 5;
  EXPECT_TRUE(looks_and_sees(5)) << "before it drives the device, too";
  run();
  for (const std::uint64_t now : {10u, 0u, 20u}) {
    plugged = now;
    EXPECT_TRUE(looks_and_sees(now));
  }
}

// What a successor says before it has its predecessor's record would be wrong, and the driver would
// believe it.
TEST_F(MemLink, ASuccessorIsHeardOnceItHasTheRecord) {
  ASSERT_TRUE(make());
  run();
  plugged = 7;
  ASSERT_TRUE(looks_and_sees(7));
  std::atomic<bool> early = false;
  plugged = 0;
  backend.script(Request::set_inflight_fd, 0, [&](vhost::Frontend& peer, const auto& message) {
    early = listener.plugged != 7;
    plugged = 7;
    return ScriptedBackend::acknowledge(peer, message, 0);
  });
  const auto changes = listener.changes.load();
  backend.hang_up();
  ASSERT_TRUE(until([&] { return listener.changes > changes; }));
  EXPECT_FALSE(early);
  EXPECT_EQ(listener.plugged, 7u);
}

TEST(MemPci, AReadOfTheConfigurationAsksForItFirst) {
  testing::FakeInterrupts interrupts;
  testing::FakeDoorbells doorbells;
  auto made = std::make_unique<testing::FakeBackend>(1);
  auto& backend = *made;
  backend.offered = virtio::feature::version_1;
  auto parts = VirtioPci::make_parts(std::move(made), interrupts);
  ASSERT_TRUE(parts);
  VirtioPci device{24, 0x00ff00, *std::move(parts), doorbells};
  PciDriver driver{device};
  unsigned asked = 0;
  backend.on_refresh = [&] {
    ++asked;
    std::vector<std::byte> space(60, std::byte{0x5a});
    backend.listener->config_changed(space);
  };
  const auto generation = [&] {
    return driver.common<std::uint8_t>(offsetof(virtio::wire::PciCommon, generation));
  };
  const auto before = generation();
  EXPECT_EQ(asked, 0u);
  EXPECT_EQ(driver.device<std::uint32_t>(40), 0x5a5a5a5au);
  EXPECT_EQ(asked, 1u);
  EXPECT_NE(generation(), before) << "a value of two reads is read again";
}

}  // namespace
}  // namespace millrace::vmm

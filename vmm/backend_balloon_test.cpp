// A balloon's back-end that dies: the next one knows how large it shall be from a record in the
// inflight region, and what it says before it has that is not the driver's to see.
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <span>

#include "virtio/features.hpp"
#include "virtio/wire/balloon.hpp"
#include "vmm/backend_link.hpp"
#include "vmm/testing/pci_driver.hpp"
#include "vmm/testing/scripted_backend.hpp"

namespace millrace::vmm {
namespace {

using std::chrono::seconds;
using testing::PciDriver;
using testing::ScriptedBackend;
using vhost::wire::Request;
using virtio::wire::BalloonConfig;

struct Listener final : VirtioBackend::Listener {
  void config_changed(std::span<const std::byte> bytes) override {
    BalloonConfig config{};
    std::memcpy(&config, bytes.data(), std::min(bytes.size(), sizeof config));
    pages = config.num_pages.host();
    if (pages == 64) shrank = true;
  }
  void needs_reset() override {}
  void stopped() override {}
  void queue_stopped(unsigned) override {}
  std::atomic<std::uint32_t> pages = 0;
  std::atomic<bool> shrank = false;
};

TEST(BalloonLink, ASuccessorIsHeardOnceItHasTheRecord) {
  std::atomic<std::uint32_t> pages = 192;
  std::atomic<bool> renewed = false;  // looked at after what the driver wrote
  ScriptedBackend backend;
  backend.change([](ScriptedBackend& b) {
    b.features = virtio::feature::version_1 | virtio::feature::protocol_features;
    b.queues = 4;
  });
  backend.script(Request::get_config, 0, [&](vhost::Frontend& peer, const auto& message) {
    auto payload = message.payload;
    BalloonConfig space{};
    space.num_pages = base::le32{pages};
    std::memcpy(payload.data() + 12, &space, sizeof space);
    renewed = backend.count(Request::set_config) > 0;
    return ScriptedBackend::reply(peer, message, payload);
  });
  backend.script(Request::set_inflight_fd, 0, [&](vhost::Frontend& peer, const auto& message) {
    pages = 192;
    return ScriptedBackend::acknowledge(peer, message, 0);
  });
  const auto ram = GuestRam::make({.bytes = 64 << 20});
  ASSERT_TRUE(ram);
  const base::Fd kick{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  Listener listener;
  BackendLinkConfig config;
  config.socket = backend.path();
  config.shape.kind = DeviceKind::balloon;
  config.wait = false;
  auto link = BackendLink::make(std::move(config), *ram);
  ASSERT_TRUE(link) << link.error().message;
  (*link)->open(listener);
  const VirtQueue queue{.index = 0,
                        .size = 64,
                        .descriptors = 0x10000,
                        .driver = 0x14000,
                        .device = 0x18000,
                        .kick = kick.get(),
                        .call = kick.get()};
  (*link)->activate(virtio::feature::version_1, std::span{&queue, 1});
  ASSERT_TRUE(
      PciDriver::until(seconds{20}, [&] { return backend.count(Request::set_vring_enable) >= 1; }));
  // What the driver wrote is told to the successor, and that is no reason to look at it earlier.
  const base::le32 actual{192};
  EXPECT_TRUE(
      (*link)->write_config(offsetof(BalloonConfig, actual), std::as_bytes(std::span{&actual, 1})));
  ASSERT_TRUE(PciDriver::until(seconds{20}, [&] { return renewed.load(); }));
  pages = 64;  // what is in the configuration of the one that is started again
  backend.hang_up();
  ASSERT_TRUE(
      PciDriver::until(seconds{20}, [&] { return backend.count(Request::set_vring_enable) >= 2; }));
  EXPECT_FALSE(listener.shrank);
  EXPECT_TRUE(PciDriver::until(seconds{20}, [&] { return listener.pages == 192; }));
  (*link)->close();
}

}  // namespace
}  // namespace millrace::vmm

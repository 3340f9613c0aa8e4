// BackendLink when its guest's memory grows: the back-end has it before the guest does.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "virtio/inflight.hpp"
#include "virtio/kept_area.hpp"
#include "vmm/backend_link.hpp"
#include "vmm/testing/pci_driver.hpp"
#include "vmm/testing/scripted_backend.hpp"

namespace millrace::vmm {
namespace {

namespace protocol = vhost::wire::protocol;
using testing::ScriptedBackend;
using Request = vhost::wire::Request;

constexpr std::uint64_t mebibyte = 1 << 20, piece_size = 128 * mebibyte;

bool until(const std::function<bool()>& done) {
  return testing::PciDriver::until(std::chrono::seconds{20}, done);
}

struct Nobody final : VirtioBackend::Listener {
  void config_changed(std::span<const std::byte>) override {}
  void needs_reset() override { ++resets_needed; }
  void stopped() override {}
  void queue_stopped(unsigned) override {}
  std::atomic<unsigned> resets_needed = 0;
};

struct BackendMemory : ::testing::Test {
  BackendMemory() {
    auto made = GuestRam::make(
        {.bytes = 64 * mebibyte, .bytes_most = 64 * mebibyte + 4 * piece_size, .slots = 4});
    CHECK(made.has_value());
    ram = std::make_unique<GuestRam>(std::move(made).value());
    for (auto& fd : events) fd = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  }
  ~BackendMemory() override {
    if (link) link->close();
  }
  void make() {
    BackendLinkConfig config;
    config.socket = backend.path();
    auto made = BackendLink::make(std::move(config), *ram);
    ASSERT_TRUE(made) << made.error().message;
    link = std::move(made).value();
    link->open(nobody);
  }
  void run() {
    const auto queue = [&](unsigned index) {
      const std::uint64_t at = 0x10000 * (index + 1);
      return VirtQueue{.index = index,
                       .size = 64,
                       .descriptors = at,
                       .driver = at + 0x4000,
                       .device = at + 0x8000,
                       .kick = events[2 * index].get(),
                       .call = events[2 * index + 1].get()};
    };
    const std::array queues{queue(0), queue(1)};
    link->activate(virtio::feature::version_1, queues);
    ASSERT_TRUE(until([&] { return backend.count(Request::set_vring_enable) == 2; }));
  }
  void add() {
    auto piece = ram->make_piece(piece_size);
    ASSERT_TRUE(piece) << piece.error().message;
    ram->add(*std::move(piece), [this] { ++everywhere; });
  }

  ScriptedBackend backend;
  std::unique_ptr<GuestRam> ram;
  std::array<base::Fd, 4> events;
  Nobody nobody;
  std::atomic<unsigned> everywhere = 0;
  std::unique_ptr<BackendLink> link;
};

TEST_F(BackendMemory, ARunningDeviceIsGivenWhatIsNew) {
  make();
  run();
  EXPECT_EQ(backend.count(Request::add_mem_reg), 1u);
  for (unsigned pieces = 1; pieces <= 3; ++pieces) {
    add();
    ASSERT_TRUE(until([&] { return everywhere == pieces; }));
    EXPECT_EQ(backend.count(Request::add_mem_reg), 1 + pieces);
  }
  EXPECT_EQ(backend.count(Request::get_vring_base), 0u) << "no ring is stopped for it";
  EXPECT_EQ(backend.connections(), 1u);
}

TEST_F(BackendMemory, ADeviceThatStartsLaterIsGivenAll) {
  make();
  add();
  ASSERT_TRUE(until([&] { return everywhere == 1; }));
  EXPECT_EQ(backend.count(Request::add_mem_reg), 0u);
  run();
  EXPECT_EQ(backend.count(Request::add_mem_reg), 2u);
}

TEST_F(BackendMemory, ABackendWithoutSlotsIsGivenTheWholeTableAgain) {
  backend.change([](ScriptedBackend& b) { b.protocol &= ~protocol::configure_mem_slots; });
  make();
  run();
  add();
  ASSERT_TRUE(until([&] { return everywhere == 1; }));
  EXPECT_EQ(backend.count(Request::set_mem_table), 2u);
  const auto all = backend.noted();
  EXPECT_TRUE(std::ranges::any_of(all, [](const ScriptedBackend::Noted& one) {
    return one.request == Request::set_mem_table && one.first == 2;  // regions
  }));
}

// It is told at once, in one line, and not when the guest's driver starts.
TEST_F(BackendMemory, TooFewSlotsAreNoticedAtConnect) {
  backend.change([](ScriptedBackend& b) { b.memory_slots = 0; });
  BackendLinkConfig config;
  config.socket = backend.path();
  const auto refused = BackendLink::make(std::move(config), *ram);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            backend.path() + ": the back-end takes 0 memory regions, the guest has 1");
}

// One that dies over it is replaced, and its successor has all of the memory.
TEST_F(BackendMemory, TheGuestWaitsForABackendOrForItsEnd) {
  make();
  run();
  std::atomic<bool> asked = false, answer = false;
  backend.script(Request::add_mem_reg, 1, [&](vhost::Frontend&, const vhost::Message&) {
    asked = true;
    until([&] { return answer.load(); });
    return false;  // hangs up
  });
  add();
  ASSERT_TRUE(until([&] { return asked.load(); }));
  EXPECT_EQ(everywhere, 0u);
  answer = true;
  ASSERT_TRUE(until([&] { return everywhere == 1; }));
  ASSERT_TRUE(until([&] { return backend.count(Request::set_vring_enable) == 4; }));
  EXPECT_EQ(backend.connections(), 2u);
  EXPECT_EQ(backend.count(Request::add_mem_reg), 1u + 1 + 2);
  EXPECT_EQ(nobody.resets_needed, 0u);
}

TEST_F(BackendMemory, ADeviceThatGoesKeepsNobodyWaiting) {
  make();
  link->close();
  link.reset();
  add();
  EXPECT_EQ(everywhere, 1u);
}

// A back-end may keep more behind the queues' parts, so that they are smaller than their share.
TEST(BackendInflight, AQueueIsMadeNewAndNothingElse) {
  for (const bool packed : {false, true}) {
    for (const std::uint64_t kept : {std::uint64_t{0}, virtio::KeptArea::size}) {
      const auto room = virtio::InflightRegion::room_for(64);
      const auto part = virtio::InflightRegion::size_for(1, room, packed);
      const auto size = 3 * part + kept;
      const std::vector<std::byte> before(size, std::byte{0xff});
      InflightMemory memory{};
      memory.fd = base::Fd{::memfd_create("inflight", MFD_CLOEXEC)};
      memory.shape = {.size = size, .offset = 0, .queues = 3, .queue_size = 64, .padding = 0};
      ASSERT_EQ(::pwrite(memory.fd.get(), before.data(), size, 0), static_cast<ssize_t>(size));
      clear_part(memory, 1, packed);
      clear_part(memory, 3, packed);
      auto now = before;
      ASSERT_EQ(::pread(memory.fd.get(), now.data(), size, 0), static_cast<ssize_t>(size));
      auto wanted = before;
      std::fill_n(wanted.begin() + static_cast<std::ptrdiff_t>(part), part, std::byte{0});
      EXPECT_EQ(now, wanted);
    }
  }
}

}  // namespace
}  // namespace millrace::vmm

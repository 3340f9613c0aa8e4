// A guest that a real vCPU runs, of a machine with the daemon's disk, all in this process. The
// guest (freestanding/disk_driver.cpp) uses integer instructions alone, which any KVM can run.
#include <gtest/gtest.h>
#include <poll.h>

#include <fstream>

#include "tests/backend_rig.hpp"
#include "vmm/device_options.hpp"
#include "vmm/machine.hpp"

namespace millrace::tests {
namespace {

class NativeGuest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto opened = vmm::KvmSystem::open(); opened) {
      system.emplace(*std::move(opened));
    } else {
      GTEST_SKIP() << "skipped: " << opened.error().message;
    }
  }
  std::optional<vmm::KvmSystem> system;
};

TEST_F(NativeGuest, DrivesADiskFromDiscoveryToReset) {
  Backend backend;
  vmm::MachineConfig config;
  config.boot.kernel = NATIVE_GUEST;
  config.ram.bytes = 64 << 20;
  vmm::DeviceOption disk;
  disk.kind = vmm::DeviceOption::Kind::disk;
  disk.socket = backend.add_disk(ram_disk("disk"));
  auto make = vmm::make_device(disk, [] { return -1; });
  ASSERT_TRUE(make) << make.error().message;
  config.functions.push_back({"disk0", *std::move(make)});

  base::EventLoop loop;
  const auto log = backend.folder() / "console";
  auto console = vmm::Console::make(loop, log, [] {});
  ASSERT_TRUE(console) << console.error().message;
  auto machine = vmm::Machine::make(*system, config, {console->get()});
  ASSERT_TRUE(machine) << machine.error().message;
  ASSERT_TRUE((*machine)->start());
  pollfd ended{(*machine)->ended_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&ended, 1, 120'000), 1) << "the guest did not come to its end";
  (*machine)->stop();
  EXPECT_EQ((*machine)->ending(), vmm::Ending::power_off) << (*machine)->why();
  machine->reset();  // a console outlives its machine
  console->reset();  // and writes what it still has

  std::ifstream file{log};
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  const std::vector<std::string> once{"negotiated", "served", "interrupt pending", "interrupted",
                                      "reset"};
  std::vector<std::string> expected{"discovered"};
  for (int round = 0; round < 2; ++round) expected.insert(expected.end(), once.begin(), once.end());
  EXPECT_EQ(lines, expected);
  EXPECT_FALSE(backend.queue("disk", 0).started);
}

}  // namespace
}  // namespace millrace::tests

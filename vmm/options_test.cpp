#include "vmm/options.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "vmm/device_options.hpp"

namespace millrace::vmm {

namespace {

struct Parsed {
  std::optional<Options> options;
  int status = -1;
  std::string said;
};

Parsed parse(std::vector<const char*> words) {
  words.insert(words.begin(), "millrace-vmm");
  Parsed parsed;
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  parsed.options = parse_options(static_cast<int>(words.size()), words.data(), parsed.status);
  parsed.said = testing::internal::GetCapturedStdout() + testing::internal::GetCapturedStderr();
  return parsed;
}

TEST(Options, TheWholeLine) {
  const auto parsed = parse({"--kernel",  "vmlinuz",
                             "--initrd",  "initrd",
                             "--cmdline", "console=ttyS0",
                             "--memory",  "1G",
                             "--cpus",    "4",
                             "--disk",    "socket=/a,queues=2",
                             "--net",     "socket=/b,mac=52:54:00:00:00:01,queue-size=512,wait=no",
                             "--disk",    "socket=/c",
                             "--console", "-",
                             "--reboot",  "restart"});
  ASSERT_TRUE(parsed.options) << parsed.said;
  const auto& options = *parsed.options;
  EXPECT_EQ(options.boot.command_line, "console=ttyS0");
  EXPECT_EQ(options.ram.bytes, 1ull << 30);
  EXPECT_EQ(options.cpus, 4u);
  EXPECT_TRUE(options.restart);
  EXPECT_EQ(options.consoles, (std::vector<std::string>{"-", "none"}));
  // Devices keep the order of the line, which is that of their slots.
  ASSERT_EQ(options.devices.size(), 3u);
  EXPECT_EQ(options.devices[0].socket, "/a");
  EXPECT_EQ(options.devices[0].queues, 2u);
  EXPECT_EQ(options.devices[1].kind, DeviceOption::Kind::net);
  EXPECT_EQ(options.devices[1].queue_size, 512u);
  EXPECT_FALSE(options.devices[1].wait);
  EXPECT_EQ(options.devices[2].socket, "/c");
  EXPECT_EQ(options.hotplug_slots, 8u);
}

TEST(Options, DevicesHaveNames) {
  const auto parsed = parse({"--kernel", "k", "--disk", "socket=/a", "--net",
                             "socket=/b,id=web_0.x-1,removable=yes", "--net", "socket=/c", "--disk",
                             "socket=/d", "--hotplug-slots", "0"});
  ASSERT_TRUE(parsed.options) << parsed.said;
  std::vector<std::string> ids;
  for (const auto& device : parsed.options->devices) ids.push_back(device.id);
  EXPECT_EQ(ids, (std::vector<std::string>{"disk0", "web_0.x-1", "net1", "disk1"}));
  EXPECT_EQ(parsed.options->hotplug_slots, 0u);
  EXPECT_TRUE(parsed.options->devices[1].removable);
  EXPECT_FALSE(parsed.options->devices[2].removable);
  EXPECT_EQ(parsed.options->pci_ports(), 1u);
}

TEST(Options, AsManyDevicesAsThereIsRoomFor) {
  const auto with = [](unsigned devices, const char* slots) {
    std::vector<const char*> words{"--kernel", "k", "--hotplug-slots", slots};
    for (unsigned i = 0; i < devices; ++i) words.insert(words.end(), {"--disk", "socket=/a"});
    return parse(words);
  };
  EXPECT_TRUE(with(pci_layout::devices_max, "0").options);
  EXPECT_TRUE(with(2, "64").options);
  const std::string id(65, 'x'), long_id = "socket=/a,id=" + id;
  const std::vector<std::pair<Parsed, const char*>> wrong{
      {with(pci_layout::devices_max + 1, "0"), "88 devices do not fit"},
      {with(40, "48"), "there is room for 47"},
      {with(40, "4294967295"), "there is room for 47"},
      {with(0, "65"), "there is room for 64"},
      {parse({"--kernel", "k", "--disk", "socket=/a,id=x", "--net", "socket=/a,id=x"}),
       "two devices have the id 'x'"},
      {parse({"--kernel", "k", "--disk", "socket=/a,id=net0", "--net", "socket=/a"}),
       "the id 'net0' is that of a device that was given none"},
      {parse({"--kernel", "k", "--disk", "socket=/a,id="}), "id=: give 1 to 64 letters"},
      {parse({"--kernel", "k", "--disk", "socket=/a,id=a/b"}), "id=a/b: give 1 to 64 letters"},
      {parse({"--kernel", "k", "--disk", long_id.c_str()}), "give 1 to 64 letters"},
  };
  for (const auto& [parsed, piece] : wrong) {
    EXPECT_FALSE(parsed.options);
    EXPECT_EQ(parsed.status, exit_usage);
    EXPECT_NE(parsed.said.find(piece), std::string::npos) << parsed.said;
  }
}

TEST(Options, WhatIsWrongIsNamed) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases{
      {{}, "--kernel"},
      {{"--kernel", "k", "--memory", "lots"}, "--memory"},
      {{"--kernel", "k", "--cpus", "many"}, "--cpus"},
      {{"--kernel", "k", "--cpus", "65"}, "--cpus 65: '65' is no number from 1 to 64"},
      {{"--kernel", "k", "--cpus", "4,max=2"}, "--cpus 4,max=2: max=2 is less than the 4 vCPUs"},
      {{"--kernel", "k", "--memory", "1G,max=512M"}, "--memory 1G,max=512M: max is less"},
      {{"--kernel", "k", "--cpu", "486"}, "--cpu: there is no processor model 486: choose one of"},
      {{"--kernel", "k", "--machine", "pc"}, "--machine: there is no machine profile pc: this"},
      {{"--kernel", "k", "--reboot", "never"}, "--reboot"},
      {{"--kernel", "k", "--net", "mac=1"}, "socket=PATH"},
      {{"--kernel", "k", "--net", "socket"}, "'socket' is no KEY=VALUE"},
      {{"--kernel", "k", "--disk", "socket=/a,mac=52:54:00:00:00:01"}, "cannot use mac="},
      {{"--kernel", "k", "--disk", "socket=/a,queues=0"}, "give a number from 1"},
      {{"--kernel", "k", "--disk", "socket=/a,queues=2x"}, "give a number from 1"},
      {{"--kernel", "k", "--disk", "socket=/a,queue-size=100"}, "power of two"},
      {{"--kernel", "k", "--disk", "socket=/a,wait=maybe"}, "cannot use wait=maybe"},
      {{"--kernel", "k", "--disk", "socket=/a,removable=1"}, "cannot use removable=1"},
      {{"--kernel", "k", "--disk", "socket=/a,id=a/b"}, "id=a/b: give 1 to 64"},
      {{"--kernel", "k", "--name", "a b"}, "--name a b"},
      {{"--kernel", "k", "--console", "-", "--second-console", "-"}, "--second-console"},
      {{"--kernel", "k", "--ksm"}, "KSM never merges shared memory"},
      {{"--kernel", "k", "--vfio", "01:10.0"}, "'01:10.0' is no PCI address"},
      {{"--kernel", "k", "--vfio", "id=nic"}, "give the function's address"},
      {{"--kernel", "k", "--vfio", "0000:01:10.0,socket=/s"}, "cannot use socket=/s"},
      {{"--kernel", "k", "--vfio-allow", "eth0"}, "--vfio-allow eth0: that is no PCI address"},
      {{"--kernel", "k", "--vfio", "0000:01:10.0", "--vfio-allow", "0000:01:10.0"}, "named twice"},
      {{"--kernel", "k", "--vfio", "0000:01:10.0", "--balloon", "socket=/b"}, "--balloon takes"},
      {{"--kernel", "k", "--nonsense"}, "--nonsense"},
  };
  for (const auto& [words, piece] : cases) {
    const auto parsed = parse(words);
    EXPECT_FALSE(parsed.options);
    EXPECT_EQ(parsed.status, exit_usage);
    EXPECT_NE(parsed.said.find(piece), std::string::npos) << parsed.said;
  }
}

TEST(Options, LeftOutIsOneVcpuOnThisTerminal) {
  const auto parsed = parse({"--kernel", "vmlinuz"});
  ASSERT_TRUE(parsed.options) << parsed.said;
  EXPECT_EQ(parsed.options->consoles, (std::vector<std::string>{"-", "none"}));
  EXPECT_EQ(parsed.options->cpus, 1u);
  EXPECT_EQ(parsed.options->ram.bytes, 256u << 20);
  EXPECT_FALSE(parsed.options->restart);
  EXPECT_TRUE(parsed.options->devices.empty());
}

TEST(Options, FunctionsOfTheHost) {
  const auto parsed =
      parse({"--kernel", "k", "--vfio", "0000:01:10.0", "--vfio", "address=0000:01:10.2,id=nic",
             "--vfio-allow", "0000:01:10.4", "--hotplug-slots", "1"});
  ASSERT_TRUE(parsed.options) << parsed.said;
  const auto& options = *parsed.options;
  ASSERT_EQ(options.devices.size(), 2u);
  EXPECT_EQ(options.devices[0].address, "0000:01:10.0");
  EXPECT_EQ(options.devices[0].id, "vfio0");
  EXPECT_EQ(options.devices[1].address, "0000:01:10.2");
  EXPECT_EQ(options.devices[1].id, "nic");
  EXPECT_EQ(options.functions,
            (std::vector<std::string>{"0000:01:10.4", "0000:01:10.0", "0000:01:10.2"}));
  // Each is behind a port, from which it can be taken.
  EXPECT_EQ(options.pci_ports(), 3u);
}

TEST(Options, DevicesHaveIds) {
  const auto parsed = parse({"--kernel", "k", "--net", "socket=/a", "--disk", "socket=/b", "--net",
                             "socket=/c,id=uplink", "--net", "socket=/d", "--control", "/c.sock",
                             "--name", "web0", "--dump-on-panic", "/core"});
  ASSERT_TRUE(parsed.options) << parsed.said;
  std::vector<std::string> ids;
  for (const auto& device : parsed.options->devices) ids.push_back(device.id);
  EXPECT_EQ(ids, (std::vector<std::string>{"net0", "disk0", "uplink", "net2"}));
  EXPECT_EQ(parsed.options->control, "/c.sock");
  EXPECT_EQ(parsed.options->name, "web0");
  EXPECT_EQ(parsed.options->dump_on_panic, "/core");
  const auto twice = parse({"--kernel", "k", "--disk", "socket=/a,id=net0", "--net", "socket=/b"});
  EXPECT_FALSE(twice.options);
  EXPECT_NE(twice.said.find("the id 'net0' is that of a device"), std::string::npos) << twice.said;
}

TEST(Options, HelpIsNoError) {
  const auto parsed = parse({"--help"});
  EXPECT_FALSE(parsed.options);
  EXPECT_EQ(parsed.status, 0);
  EXPECT_NE(parsed.said.find("Exit status"), std::string::npos);
}

TEST(Options, AMacIsOneStations) {
  const auto never = [] { return -1; };
  for (const auto* const mac : {"52:54:00:12:34", "53:54:00:12:34:56", "00:00:00:00:00:00", "x",
                                "52:54:00:12:34:56:78", "52-54-00-12-34-56"}) {
    DeviceOption option;
    option.socket = "/a";
    option.mac = mac;
    const auto made = make_device(option, never);
    ASSERT_FALSE(made) << mac;
    EXPECT_NE(made.error().message.find(mac), std::string::npos);
  }
  DeviceOption option;
  option.socket = "/a";
  option.mac = "52:54:00:12:34:56";
  EXPECT_TRUE(make_device(option, never));
}

}  // namespace

}  // namespace millrace::vmm

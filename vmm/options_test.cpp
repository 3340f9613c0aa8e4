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
}

TEST(Options, WhatIsWrongIsNamed) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases{
      {{}, "--kernel"},
      {{"--kernel", "k", "--memory", "lots"}, "--memory"},
      {{"--kernel", "k", "--cpus", "many"}, "--cpus"},
      {{"--kernel", "k", "--reboot", "never"}, "--reboot"},
      {{"--kernel", "k", "--net", "mac=1"}, "socket=PATH"},
      {{"--kernel", "k", "--net", "socket"}, "'socket' is no KEY=VALUE"},
      {{"--kernel", "k", "--disk", "socket=/a,mac=52:54:00:00:00:01"}, "cannot use mac="},
      {{"--kernel", "k", "--disk", "socket=/a,queues=0"}, "give a number from 1"},
      {{"--kernel", "k", "--disk", "socket=/a,queues=2x"}, "give a number from 1"},
      {{"--kernel", "k", "--disk", "socket=/a,queue-size=100"}, "power of two"},
      {{"--kernel", "k", "--disk", "socket=/a,wait=maybe"}, "cannot use wait=maybe"},
      {{"--kernel", "k", "--console", "-", "--second-console", "-"}, "--second-console"},
      {{"--kernel", "k", "--ksm"}, "never merges pages of shared memory"},
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

// A guest's companions in a configuration: [[rng]], [[console]], [[balloon]], [[mem]].
#include <gtest/gtest.h>

#include <algorithm>

#include "daemon/testing/config_text.hpp"

namespace millrace::daemon {
namespace {

using config_text::parsed;
using config_text::refused_once;

TEST(ConfigGuest, ReadsEveryCompanion) {
  const auto config = parsed(R"(
[[rng]]
name = "r"
socket = "/run/r"
bytes_per_second = "64KiB"
[[console]]
name = "c"
socket = "/run/c"
ports_max = 3
ports_file = "/run/ports"
[[console.port]]
name = "agent"
socket = "/run/agent"
permissions = "0600"
[[console.port]]
name = "tty"
socket = "/run/tty"
terminal = true
[[balloon]]
name = "b"
socket = "/run/b"
size = "64MiB"
reporting = false
deflate_on_oom = false
stats_s = 0
[[mem]]
name = "m"
socket = "/run/m"
requested = "512MiB"
)");
  ASSERT_EQ(config.companions.size(), 4u);
  const auto& rng = std::get<guest::RngSettings>(config.companions[0].device.settings);
  EXPECT_EQ(config.companions[0].device.name, "r");
  EXPECT_EQ(config.companions[0].server.socket, "/run/r");
  EXPECT_EQ(rng.bytes_per_second, 65536u);
  const auto& console = std::get<guest::ConsoleSettings>(config.companions[1].device.settings);
  EXPECT_EQ(console.ports_max, 3u);
  EXPECT_EQ(console.ports_file, "/run/ports");
  ASSERT_EQ(console.ports.size(), 2u);
  EXPECT_EQ(console.ports[0].name, "agent");
  EXPECT_EQ(console.ports[0].socket, "/run/agent");
  EXPECT_EQ(console.ports[0].permissions, 0600u);
  EXPECT_FALSE(console.ports[0].terminal);
  EXPECT_TRUE(console.ports[1].terminal);
  const auto& balloon = std::get<guest::BalloonSettings>(config.companions[2].device.settings);
  EXPECT_EQ(balloon.size, 64u << 20);
  EXPECT_FALSE(balloon.reporting || balloon.deflate_on_oom);
  EXPECT_EQ(balloon.stats_s, 0u);
  const auto& mem = std::get<guest::MemSettings>(config.companions[3].device.settings);
  EXPECT_EQ(mem.requested, 512u << 20);
}

TEST(ConfigGuest, WhatIsWrongIsOneLine) {
  const std::string rng = "[[rng]]\nname = \"r\"\nsocket = \"/run/r\"\n";
  const std::string console = "[[console]]\nname = \"c\"\nsocket = \"/run/c\"\n";
  const std::string port = "[[console.port]]\nname = \"p\"\nsocket = \"/run/p\"\n";
  const std::vector<std::pair<std::string, const char*>> cases{
      {"[[rng]]\nname = \"r\"\n", "socket"},
      {rng + "bytes_per_second = 0\n", "bytes_per_second"},
      {rng + "bytes = 1\n", "bytes"},
      {rng + "[[balloon]]\nname = \"r\"\nsocket = \"/run/b\"\n", "already used by [[rng]] r"},
      {console + "ports_max = 0\n", "ports_max"},
      {console + "ports_file = \"ports\"\n", "ports_file is no absolute path"},
      {console + "ports_max = 32\n", "ports_max"},
      {console + "ports_max = 1\n" + port, "port 0 can only be a terminal"},
      {console + "port = 3\n", "[[console.port]]"},
      {console + port + "[[console.port]]\nname = \"p\"\nsocket = \"/run/q\"\n", "two ports"},
      {console + "[[console.port]]\nname = \"p\"\nsocket = \"/run/c\"\n", "already used"},
      {console + "[[console.port]]\nname = \"p\"\nsocket = \"relative\"\n", "relative"},
      {console + "[[console.port]]\nsocket = \"/run/p\"\n", "name"},
      {console + port + "console = true\n", "console"},
      {"[[balloon]]\nname = \"b\"\nsocket = \"/run/b\"\nsize = \"lots\"\n", "size"},
      {"[[mem]]\nname = \"m\"\nsocket = \"/run/m\"\nrequested = \"1MiB\"\n", "a multiple of 2"},
      {"[[mem]]\nname = \"m\"\nsocket = \"/run/m\"\nsize = \"1GiB\"\n", "size"},
  };
  for (const auto& [text, said] : cases) {
    const auto line = refused_once(text);
    EXPECT_NE(line.find(said), std::string::npos) << text << "\n" << line;
  }
}

}  // namespace
}  // namespace millrace::daemon

// Ports of a console that commands added and removed, for the daemon that comes next.
#include "daemon/kept_ports.hpp"

#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "daemon/topology.hpp"

namespace millrace::daemon {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre, ::testing::HasSubstr, ::testing::IsEmpty;

class KeptPorts : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = "/tmp/millrace-ports-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    config_.cores = {0};
    config_.companions.emplace_back();
    config_.companions[0].device.name = "c";
    config_.companions[0].server.socket = path("c.sock");
    settings().ports_file = path("ports");
    settings().ports = {port("a"), port("b")};
  }
  void TearDown() override {
    stop();
    std::filesystem::remove_all(folder_);
  }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
  [[nodiscard]] guest::PortSettings port(const std::string& name) const {
    return {.name = name, .socket = path(name + ".sock"), .permissions = 0600};
  }
  guest::ConsoleSettings& settings() {
    auto& settings = config_.companions[0].device.settings;
    if (!std::holds_alternative<guest::ConsoleSettings>(settings)) {
      settings = guest::ConsoleSettings{};
    }
    return std::get<guest::ConsoleSettings>(settings);
  }

  // A daemon's life begins: the line that is wrong.
  std::string start() {
    stop();
    auto made = Topology::make(loop_, config_);
    if (!made) return made.error().message;
    topology_ = *std::move(made);
    std::optional<std::string> answer;
    topology_->add_all(config_, [&answer](const base::Result<void>& result) {
      answer = result ? "" : result.error().message;
    });
    while (!answer) loop_.step(100ms);
    return *answer;
  }
  void stop() {
    bool closed = false;
    if (topology_ != nullptr) topology_->close([&closed] { closed = true; });
    while (topology_ != nullptr && !closed) loop_.step(100ms);
    topology_.reset();
  }
  // "NUMBER NAME" of each.
  [[nodiscard]] std::vector<std::string> ports() const {
    std::vector<std::string> out;
    for (const auto& each : topology_->companions().at("c")->device->ports()) {
      out.push_back(std::to_string(each.id) + " " + each.settings.name);
    }
    return out;
  }
  void write(const std::string& text) { std::ofstream{path("ports")} << text; }
  [[nodiscard]] std::string text() const {
    std::ostringstream out;
    out << std::ifstream{path("ports")}.rdbuf();
    return out.str();
  }

  std::string folder_;
  Config config_;
  base::EventLoop loop_;
  std::unique_ptr<Topology> topology_;
};

TEST_F(KeptPorts, WhatCommandsChangedIsThereAgainAtItsNumber) {
  ASSERT_EQ(start(), "");
  EXPECT_FALSE(std::filesystem::exists(path("ports"))) << "nothing was changed";
  ASSERT_TRUE(topology_->add_console_port("c", port("new")));
  ASSERT_TRUE(topology_->remove_console_port("c", "a"));
  ASSERT_THAT(ports(), ElementsAre("2 b", "3 new"));
  ASSERT_EQ(start(), "");
  EXPECT_THAT(ports(), ElementsAre("2 b", "3 new"));
  struct stat status {};
  ASSERT_EQ(::stat(path("new.sock").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  ASSERT_EQ(::stat(path("ports").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  // And so on.
  ASSERT_TRUE(topology_->add_console_port("c", port("more")));
  ASSERT_EQ(start(), "");
  EXPECT_THAT(ports(), ElementsAre("1 more", "2 b", "3 new"));
}

TEST_F(KeptPorts, AConfigurationThatWasChangedCountsInstead) {
  ASSERT_EQ(start(), "");
  ASSERT_TRUE(topology_->add_console_port("c", port("new")));
  settings().ports.pop_back();
  ASSERT_EQ(start(), "");
  EXPECT_THAT(ports(), ElementsAre("1 a"));
}

TEST_F(KeptPorts, WithoutAFileNothingIsKept) {
  settings().ports_file.clear();
  ASSERT_EQ(start(), "");
  ASSERT_TRUE(topology_->add_console_port("c", port("new")));
  ASSERT_EQ(start(), "");
  EXPECT_THAT(ports(), ElementsAre("1 a", "2 b"));
}

TEST_F(KeptPorts, AFileThatMakesNoSenseIsOneLine) {
  ASSERT_EQ(start(), "");
  ASSERT_TRUE(topology_->add_console_port("c", port("new")));
  const auto good = text();
  for (const std::string bad : {"", "[", "[]", "{}", R"({"configured": [], "ports": 1})"}) {
    write(bad);
    EXPECT_EQ(start(), "console c: ports_file " + path("ports") +
                           ": is no list of ports that this program wrote; remove it");
  }
  const auto with = [&good](const std::string& from, const std::string& to) {
    auto changed = good;
    const auto at = changed.rfind(from);
    return at == std::string::npos ? "" : changed.replace(at, from.size(), to);
  };
  write(with("\"terminal\": false", "\"terminal\": 7"));
  EXPECT_THAT(start(), HasSubstr("\"terminal\" "));
  write(with("\"terminal\": false", "\"colour\": 7"));
  EXPECT_THAT(start(), HasSubstr("there is no argument \"colour\""));
  write(with("\"id\": 3", "\"id\": 1"));
  EXPECT_THAT(start(), HasSubstr("there is no free place of the number 1"));
  write(good);
  EXPECT_EQ(start(), "");
}

TEST_F(KeptPorts, APortThatCannotBeKeptIsNotAdded) {
  settings().ports_file = path("nowhere/ports");
  ASSERT_EQ(start(), "");
  const auto added = topology_->add_console_port("c", port("new"));
  ASSERT_FALSE(added);
  EXPECT_THAT(added.error().message, HasSubstr("console c: ports_file: cannot write"));
  EXPECT_THAT(ports(), ElementsAre("1 a", "2 b"));
  EXPECT_FALSE(topology_->add_console_port("c", port("a")));
  EXPECT_THAT(ports(), ElementsAre("1 a", "2 b")) << "another's name";
}

}  // namespace
}  // namespace millrace::daemon

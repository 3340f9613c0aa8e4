// What the control socket's commands say to wrong arguments: one clear line each.
#include "daemon/commands.hpp"

#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/fd.hpp"
#include "daemon/topology.hpp"

namespace millrace::daemon {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    std::string folder = "/tmp/millrace-commands-XXXXXX";
    folder_ = ::mkdtemp(folder.data());
    config_.cores = {0};
    auto made = Topology::make(loop_, config_);
    CHECK(made.has_value());
    topology_ = *std::move(made);
    table_ = make_commands(*topology_, [] {});
  }
  ~CommandsTest() override {
    bool closed = false;
    topology_->close([&closed] { closed = true; });
    while (!closed) loop_.step(std::chrono::milliseconds{100});
    topology_.reset();
    std::filesystem::remove_all(folder_);
  }

  // The error's line, or "done".
  std::string said(const std::string& command, const json& arguments) {
    std::optional<std::string> line;
    const auto* const entry = table_.find(command);
    CHECK(entry != nullptr);
    entry->run(arguments, [&line](const qmp::Answer& answer) {
      line = answer ? "done" : answer.error().line;
    });
    while (!line) loop_.step(std::chrono::milliseconds{100});
    EXPECT_EQ(line->find('\n'), std::string::npos);
    return *line;
  }

  std::string folder_;
  Config config_;
  base::EventLoop loop_;
  std::unique_ptr<Topology> topology_;
  qmp::CommandTable table_;
};

TEST_F(CommandsTest, AnEmptyNameIsNotEverything) {
  EXPECT_EQ(said("port-flush", {{"name", ""}}),
            "port-flush: name is empty; give name = \"web0\", or leave it out");
  EXPECT_EQ(said("port-flush", json::object()), "done");
  EXPECT_EQ(said("pf-apply", {{"pci", ""}}),
            "pf-apply: pci is \"\"; give one like \"0000:01:00.0\"");
  EXPECT_EQ(said("pf-apply", json::object()), "done");
  for (const char* command : {"port-remove", "disk-remove", "uplink-remove", "rng-remove"}) {
    EXPECT_EQ(said(command, {{"name", ""}}),
              std::string{command} + ": name is empty; give name = \"web0\"");
  }
  EXPECT_EQ(said("disk-resize", {{"name", ""}}),
            "disk-resize: name is empty; give name = \"web0-root\"");
}

TEST_F(CommandsTest, ANameThatIsMissingOrNoTextIsNamed) {
  EXPECT_EQ(said("mem-remove", json::object()),
            "mem-remove: name is missing; give name = \"web0\"");
  EXPECT_EQ(said("mem-resize", {{"name", 7}, {"size", "1GiB"}}),
            "mem-resize: name is a number; give text in quotes");
  EXPECT_EQ(said("console-port-remove", {{"console", nullptr}, {"name", "a"}}),
            "console-port-remove: console is null; give text in quotes");
  EXPECT_EQ(said("port-remove", {{"name", "web0\x1b[2J"}}),
            "port-remove: name holds a control character; give text of one line");
  EXPECT_EQ(said("port-remove", {{"nmae", "a"}}),
            "port-remove: name is missing; give name = \"web0\"; also: port-remove: unknown key "
            "\"nmae\"; did you mean \"name\"?");
  EXPECT_EQ(said("balloon-remove", {{"name", "nobody"}}), "there is no balloon nobody");
}

TEST_F(CommandsTest, AMoveSaysWhatAReactorIs) {
  EXPECT_EQ(said("move-queue", {{"name", "a"}, {"queue", 0}, {"reactor", "first"}}),
            "move-queue: reactor is \"first\"; give its number, or \"auto\"");
  EXPECT_EQ(said("move-queue", {{"name", "a"}, {"queue", 0}}),
            "move-queue: reactor is missing; give reactor = 1, or \"auto\"");
  EXPECT_EQ(said("move-queue", {{"name", "a"}, {"queue", 0}, {"reactor", 64}}),
            "move-queue: reactor is 64; give 0 to 63");
  EXPECT_EQ(
      said("move-queue", {{"name", "a"}, {"queue", 18'446'744'073'709'551'615ull}, {"reactor", 0}}),
      "move-queue: queue is a number that is too large; give a whole number, 0 to 65535");
  for (const json& anywhere : {json("auto"), json(nullptr), json(0)}) {
    EXPECT_EQ(said("move-queue", {{"name", "a"}, {"queue", 0}, {"reactor", anywhere}}),
              "there is no port, disk or companion a");
  }
}

TEST_F(CommandsTest, AGuestsFunctionThatCannotBeIsRefused) {
  const auto lease = [this](const json& more) {
    json arguments{{"name", "web0"}};
    arguments.update(more);
    return said("function-lease", arguments);
  };
  EXPECT_EQ(lease({{"name", ""}}),
            "function-lease: name is empty; give name = \"web0\", the guest's");
  EXPECT_EQ(lease({{"pf", "eth0"}}),
            "function-lease: pf is \"eth0\"; give one like \"0000:01:00.0\"");
  EXPECT_EQ(lease({{"qos", 3}}),
            "function-lease: qos is of a VLAN, and there is none; give vlan, too");
  EXPECT_THAT(lease({{"numa_node", "near"}}), HasSubstr("numa_node is text"));
  EXPECT_EQ(lease(json::object()), "guest web0: no VF is free: there is no [[pf]]");
  EXPECT_THAT(lease({{"pf", "0000:01:00.0"}}),
              HasSubstr("guest web0: there is no [[pf]] with pci"));
  EXPECT_EQ(said("function-return", {{"name", "web0"}}), "there is no function of a guest web0");
}

// The daemon's own listeners are descriptors, too.
TEST_F(CommandsTest, ADescriptorCannotBeNamedAtRunTime) {
  const base::Fd own{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  (folder_ + "/own.sock").copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(own.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(own.get(), 1), 0);
  const auto socket = "fd:" + std::to_string(own.get());
  for (const auto& [command, more] :
       {std::pair{"port", json::object()},
        std::pair{"disk", json{{"backend", "null"}, {"size", 512}}}, std::pair{"rng", json{}}}) {
    json arguments{{"name", "a"}, {"socket", socket}};
    arguments.update(more.is_null() ? json::object() : more);
    EXPECT_EQ(said(std::string{command} + "-add", arguments),
              std::string{command} + " a: a descriptor is passed at the start only; give a path");
  }
  EXPECT_TRUE(topology_->ports().empty() && topology_->disks().empty());
}

// A mirror needs ports alone: no guest has to be there.
TEST_F(CommandsTest, MirrorsComeAndGo) {
  for (const char* name : {"a", "b", "watcher"}) {
    const json port{{"name", name}, {"socket", folder_ + "/" + name}};
    ASSERT_EQ(said("port-add", port), "done");
  }
  std::vector<std::string> told;
  topology_->on_event([&told](std::string_view event, const json& data) {
    told.push_back(std::string{event} + " " + data["name"].get<std::string>());
  });
  const json mirror{{"name", "m"}, {"from", {"a", "b"}}, {"to", "watcher"}, {"direction", "in"}};
  EXPECT_EQ(said("mirror-add", mirror), "done");
  EXPECT_THAT(said("mirror-add", mirror), HasSubstr("the name m is used by a mirror"));
  EXPECT_THAT(said("port-add", {{"name", "m"}, {"socket", folder_ + "/m"}}),
              HasSubstr("the name m is used by a mirror"));
  ASSERT_EQ(topology_->mirrors().size(), 1u);
  EXPECT_EQ(said("mirror-remove", {{"name", "m"}}), "done");
  EXPECT_EQ(said("mirror-remove", {{"name", "m"}}), "there is no mirror m");
  EXPECT_EQ(said("mirror-add", mirror), "done");
  EXPECT_EQ(told,
            (std::vector<std::string>{"MIRROR_ADDED m", "MIRROR_REMOVED m", "MIRROR_ADDED m"}));
  topology_->on_event({});
}

TEST_F(CommandsTest, AMirrorThatCannotBeIsRefused) {
  for (const char* name : {"a", "b", "watcher"}) {
    ASSERT_EQ(said("port-add", {{"name", name}, {"socket", folder_ + "/" + name}}), "done");
  }
  const auto add = [this](const json& from, const char* to, const char* name = "n") {
    return said("mirror-add", {{"name", name}, {"from", from}, {"to", to}});
  };
  EXPECT_EQ(add({"nobody"}, "watcher"),
            "mirror n: there is no port or uplink nobody; add it first");
  EXPECT_EQ(add({"a"}, "nobody"), "mirror n: there is no port or uplink nobody; add it first");
  EXPECT_THAT(add({"a"}, "a"), HasSubstr("from has a, its own destination; leave it out"));
  EXPECT_THAT(add(json::array(), "a"), HasSubstr("from is empty; give it like"));
  EXPECT_THAT(add("a", "watcher"), HasSubstr("from is no list of names"));
  ASSERT_EQ(add({"a"}, "watcher", "m"), "done");
  EXPECT_EQ(add({"watcher"}, "b"),
            "mirror n: watcher is a mirror's destination, and copies are not copied; leave it out");
  EXPECT_EQ(add({"b"}, "watcher"),
            "mirror n: watcher is another mirror's destination; name all ports in one mirror");
  EXPECT_EQ(add({"b"}, "a"),
            "mirror n: a is mirrored itself, and copies are not copied; give another destination");
  EXPECT_EQ(topology_->mirrors().size(), 1u);
}

TEST_F(CommandsTest, AMirrorEndsWithItsPorts) {
  const auto ports = [this] {
    for (const char* name : {"a", "b", "watcher"}) {
      if (topology_->ports().contains(name)) continue;
      ASSERT_EQ(said("port-add", {{"name", name}, {"socket", folder_ + "/" + name}}), "done");
    }
  };
  const json mirror{{"name", "m"}, {"from", {"a", "b"}}, {"to", "watcher"}};
  ports();
  ASSERT_EQ(said("mirror-add", mirror), "done");
  EXPECT_EQ(said("port-remove", {{"name", "a"}}), "done");
  ASSERT_EQ(topology_->mirrors().size(), 1u);
  EXPECT_EQ(topology_->mirrors().at("m").config.from, std::vector<std::string>{"b"});
  EXPECT_EQ(said("port-remove", {{"name", "b"}}), "done");
  EXPECT_TRUE(topology_->mirrors().empty());
  ports();
  ASSERT_EQ(said("mirror-add", mirror), "done");
  std::vector<std::string> told;
  topology_->on_event([&told](std::string_view event, const json&) { told.emplace_back(event); });
  EXPECT_EQ(said("port-remove", {{"name", "watcher"}}), "done");
  EXPECT_TRUE(topology_->mirrors().empty());
  EXPECT_EQ(told, (std::vector<std::string>{"MIRROR_REMOVED", "PORT_REMOVED"}));
  topology_->on_event({});
}

}  // namespace
}  // namespace millrace::daemon

// The commands of the control socket over a guest that is none.
#include "vmm/control.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "qmp/testing/socket.hpp"

namespace millrace::vmm {
namespace {

using nlohmann::json;
using qmp::testing::Socket;

class FakeGuest final : public GuestControl {
 public:
  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] GuestStatus status() const override { return status_; }
  [[nodiscard]] std::vector<int> vcpu_threads() const override { return {11, 12}; }
  [[nodiscard]] std::vector<DeviceStatus> devices() const override { return devices_; }
  [[nodiscard]] DumpProgress dump_progress() const override { return progress_; }
  void pause() override { calls_ += "pause "; }
  void resume() override { calls_ += "resume "; }
  void press_power_button() override { calls_ += "button "; }
  void reset() override { calls_ += "reset "; }
  void quit() override { calls_ += "quit "; }
  void add_device(const DeviceOption& device, AddDone done) override {
    added_ = device;
    calls_ += "add ";
    if (device.id == "slow") {
      add_done_ = std::move(done);
    } else {
      done({});
    }
  }
  base::Result<void> remove_device(const std::string& id) override {
    if (id != "net0") return base::fail("there is no device \"" + id + "\"");
    calls_ += "remove ";
    return {};
  }
  base::Result<void> add_cpus(unsigned count) override {
    calls_ += "cpus:" + std::to_string(count) + " ";
    return {};
  }
  base::Result<void> add_memory(std::uint64_t bytes) override {
    if (bytes > 1u << 30) return base::fail("no room");
    calls_ += "memory:" + std::to_string(bytes) + " ";
    return {};
  }
  base::Result<void> dump(base::Fd file, DumpDone done) override {
    if (dump_done_) return base::fail("another dump is under way");
    file_ = std::move(file);
    dump_done_ = std::move(done);
    return {};
  }

  std::string name_, calls_;
  GuestStatus status_{true, "running", ""};
  std::vector<DeviceStatus> devices_;
  DumpProgress progress_;
  DeviceOption added_;
  AddDone add_done_;
  base::Fd file_;
  DumpDone dump_done_;
};

class ControlTest : public ::testing::Test {
 protected:
  ControlTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "mr-vmctl-XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
    control_ = std::move(*Control::make(loop_, directory_ + "/c.sock", guest_));
    socket_.emplace(directory_ + "/c.sock");
    EXPECT_TRUE(next().contains("QMP"));
    ask("qmp_capabilities");
  }
  ~ControlTest() override {
    control_.reset();
    std::filesystem::remove_all(directory_);
  }

  json next() {
    for (int i = 0; i < 50; ++i) {
      auto message = socket_->take_message();
      if (!message.is_null()) return message;
      for (int turn = 0; turn < 4; ++turn) loop_.step(std::chrono::milliseconds{0});
      socket_->drain();
    }
    return nullptr;
  }
  json ask(const std::string& command, const json& arguments = json::object(), int fd = -1) {
    const auto text = json{{"execute", command}, {"arguments", arguments}}.dump();
    EXPECT_TRUE(fd < 0 ? socket_->send(text) : socket_->send(text, fd));
    return next();
  }
  json answer(const std::string& command, const json& arguments = json::object()) {
    return ask(command, arguments)["return"];
  }
  std::string refusal(const std::string& command, const json& arguments, int fd = -1) {
    const auto said = ask(command, arguments, fd);
    return said.contains("error") ? said["error"]["desc"].get<std::string>() : said.dump();
  }
  base::Fd file(const std::string& name, int flags = O_RDWR) {
    return base::Fd{::open((directory_ + "/" + name).c_str(), flags | O_CREAT | O_CLOEXEC, 0600)};
  }

  std::string directory_;
  base::EventLoop loop_;
  FakeGuest guest_;
  std::unique_ptr<Control> control_;
  std::optional<Socket> socket_;
};

TEST_F(ControlTest, TellsHowTheGuestIs) {
  EXPECT_EQ(answer("query-status"), (json{{"running", true}, {"status", "running"}}));
  guest_.status_ = {false, "paused", "asked to"};
  EXPECT_EQ(answer("query-status"),
            (json{{"running", false}, {"status", "paused"}, {"why", "asked to"}}));
  EXPECT_EQ(answer("query-name"), json::object());
  guest_.name_ = "web0";
  EXPECT_EQ(answer("query-name"), (json{{"name", "web0"}}));
  EXPECT_EQ(answer("query-kvm"), (json{{"enabled", true}, {"present", true}}));
  const auto cpus = answer("query-cpus-fast");
  ASSERT_EQ(cpus.size(), 2u);
  EXPECT_EQ(cpus[1]["cpu-index"], 1);
  EXPECT_EQ(cpus[1]["thread-id"], 12);
  EXPECT_EQ(cpus[1]["target"], "x86_64");
  guest_.devices_ = {{"disk0", DeviceOption::Kind::disk, "/s", true, 4}};
  EXPECT_EQ(answer("query-devices"), (json::array({{{"id", "disk0"},
                                                    {"driver", "disk"},
                                                    {"socket", "/s"},
                                                    {"connected", true},
                                                    {"queues", 4}}})));
}

TEST_F(ControlTest, DoesWhatItIsAsked) {
  for (const char* command : {"stop", "cont", "system_powerdown", "system_reset", "quit"}) {
    EXPECT_EQ(answer(command), json::object()) << command;
  }
  EXPECT_EQ(guest_.calls_, "pause resume button reset quit ");
}

TEST_F(ControlTest, EveryCommandRefusesAnArgumentThatItDoesNotKnow) {
  const auto commands = answer("query-commands");
  EXPECT_GE(commands.size(), 18u);
  for (const auto& each : commands) {
    const auto said = ask(each["name"], {{"colour", "red"}});
    EXPECT_TRUE(said.contains("error")) << each << " -> " << said;
  }
  EXPECT_EQ(guest_.calls_, "");
}

TEST_F(ControlTest, PlugsWhatItIsTold) {
  EXPECT_EQ(answer("device_add", {{"driver", "net"},
                                  {"id", "web.0-a_"},
                                  {"socket", "/s"},
                                  {"mac", "52:54:00:00:00:01"},
                                  {"queues", 2},
                                  {"queue-size", 512}}),
            json::object());
  EXPECT_EQ(guest_.added_.kind, DeviceOption::Kind::net);
  EXPECT_EQ(guest_.added_.id, "web.0-a_");
  EXPECT_EQ(guest_.added_.socket, "/s");
  EXPECT_EQ(guest_.added_.mac, "52:54:00:00:00:01");
  EXPECT_EQ(guest_.added_.queues, 2u);
  EXPECT_EQ(guest_.added_.queue_size, 512u);
  EXPECT_FALSE(guest_.added_.wait);
  EXPECT_EQ(answer("device_add", {{"driver", "disk"}, {"id", "d"}, {"socket", "/d"}}),
            json::object());
  EXPECT_EQ(guest_.added_.kind, DeviceOption::Kind::disk);
  EXPECT_EQ(guest_.added_.queue_size, DeviceOption{}.queue_size);
  EXPECT_EQ(answer("device_del", {{"id", "net0"}}), json::object());
  EXPECT_EQ(ask("device_del", {{"id", "net1"}})["error"]["class"], "DeviceNotFound");
  EXPECT_EQ(guest_.calls_, "add add remove ");
}

TEST_F(ControlTest, AddsVcpusAndMemory) {
  EXPECT_EQ(answer("device_add", {{"driver", "cpu"}}), json::object());
  EXPECT_EQ(answer("device_add", {{"driver", "cpu"}, {"count", 3}}), json::object());
  EXPECT_EQ(answer("device_add", {{"driver", "dimm"}, {"size", "512M"}}), json::object());
  EXPECT_EQ(guest_.calls_, "cpus:1 cpus:3 memory:536870912 ");
  const auto line = [this](json arguments) {
    return ask("device_add", std::move(arguments))["error"]["desc"].get<std::string>();
  };
  EXPECT_EQ(line({{"driver", "dimm"}, {"size", "4G"}}), "no room");
  EXPECT_NE(line({{"driver", "dimm"}}).find("\"size\""), std::string::npos);
  EXPECT_NE(line({{"driver", "dimm"}, {"size", "much"}}).find("\"size\""), std::string::npos);
  EXPECT_NE(line({{"driver", "cpu"}, {"count", 0}}).find("\"count\""), std::string::npos);
  EXPECT_NE(line({{"driver", "cpu"}, {"id", "x"}}).find("id"), std::string::npos);
}

TEST_F(ControlTest, BadDevicesAreOneLine) {
  const json good{{"driver", "disk"}, {"id", "d"}, {"socket", "/s"}};
  const auto with = [&](const char* key, const json& value) {
    auto changed = good;
    changed[key] = value;
    return refusal("device_add", changed);
  };
  EXPECT_EQ(with("driver", "gpu"),
            "device_add: \"driver\" is net, disk, rng, virtio-console, balloon, vfio, cpu or dimm");
  EXPECT_EQ(with("driver", 1), "device_add: \"driver\" has to be text");
  EXPECT_EQ(with("id", "a/b"), "device_add: \"id\" is made of letters, digits, - _ .");
  EXPECT_EQ(with("id", std::string(65, 'a')),
            "device_add: \"id\" is made of letters, digits, - _ .");
  EXPECT_EQ(with("socket", ""), "device_add: \"socket\" is empty");
  EXPECT_EQ(with("queues", 257), "device_add: \"queues\" has to be a whole number from 1 to 256");
  EXPECT_EQ(with("mac", "52:54:00:00:00:01"), "device_add: there is no argument \"mac\"");
  EXPECT_EQ(guest_.calls_, "");
}

TEST_F(ControlTest, ADumpGoesWhereItIsToldAndItsAnswerWaits) {
  const auto fd = file("core");
  EXPECT_EQ(ask("getfd", {{"fdname", "core"}}, fd.get())["return"], json::object());
  EXPECT_TRUE(ask("dump-guest-memory", {{"paging", false}, {"protocol", "fd:core"}}).is_null());
  ASSERT_TRUE(guest_.dump_done_);
  ASSERT_EQ(::pwrite(guest_.file_.get(), "x", 1, 0), 1);
  EXPECT_EQ(std::filesystem::file_size(directory_ + "/core"), 1u);
  guest_.dump_done_({"completed", 7, 7, ""});
  const auto event = next();
  EXPECT_EQ(event["event"], "DUMP_COMPLETED");
  EXPECT_EQ(event["data"]["result"],
            (json{{"status", "completed"}, {"completed", 7}, {"total", 7}}));
  EXPECT_EQ(next(), (json{{"return", json::object()}}));
}

TEST_F(ControlTest, ADetachedDumpAnswersAtOnceAndTellsItsEnd) {
  guest_.progress_ = {"active", 3, 9, ""};
  EXPECT_EQ(
      answer("dump-guest-memory",
             {{"paging", false}, {"detach", true}, {"protocol", "file:" + directory_ + "/core"}}),
      json::object());
  EXPECT_EQ(answer("query-dump"), (json{{"status", "active"}, {"completed", 3}, {"total", 9}}));
  EXPECT_EQ(refusal("dump-guest-memory",
                    {{"paging", false}, {"protocol", "file:" + directory_ + "/other"}}),
            "dump-guest-memory: another dump is under way");
  guest_.dump_done_({"failed", 3, 9, "the disk is full"});
  EXPECT_EQ(next()["data"]["error"], "the disk is full");
}

TEST_F(ControlTest, ADumpThatFailsIsTheCommandsError) {
  EXPECT_TRUE(
      ask("dump-guest-memory", {{"paging", false}, {"protocol", "file:" + directory_ + "/core"}})
          .is_null());
  guest_.dump_done_({"failed", 3, 9, "the disk is full"});
  EXPECT_EQ(next()["event"], "DUMP_COMPLETED");
  EXPECT_EQ(next()["error"]["desc"], "dump-guest-memory: the disk is full");
}

TEST_F(ControlTest, DescriptorsAreKeptByNameAndFew) {
  const auto fd = file("core");
  for (std::size_t i = 0; i < Control::descriptors_max; ++i) {
    const auto name = "fd" + std::to_string(i);
    EXPECT_TRUE(ask("getfd", {{"fdname", name}}, fd.get()).contains("return"));
  }
  EXPECT_EQ(refusal("getfd", {{"fdname", "more"}}, fd.get()),
            "getfd: 16 descriptors are here already; closefd takes one away");
  EXPECT_TRUE(ask("getfd", {{"fdname", "fd0"}}, fd.get()).contains("return")) << "replaced";
  EXPECT_EQ(answer("closefd", {{"fdname", "fd0"}}), json::object());
  EXPECT_EQ(refusal("closefd", {{"fdname", "fd0"}}), "closefd: there is no descriptor \"fd0\"");
  EXPECT_EQ(refusal("getfd", {{"fdname", "fd0"}}),
            "getfd: no descriptor came with the request (SCM_RIGHTS)");
  EXPECT_EQ(refusal("getfd", {{"fdname", std::string(65, 'a')}}, fd.get()),
            "getfd: \"fdname\" is longer than 64 bytes");
}

TEST_F(ControlTest, BadDumpsAreOneLine) {
  const auto with = [&](const json& arguments) { return refusal("dump-guest-memory", arguments); };
  EXPECT_EQ(with({{"protocol", "fd:x"}}), "dump-guest-memory: \"paging\" is missing");
  EXPECT_EQ(with({{"paging", true}, {"protocol", "fd:x"}}),
            "dump-guest-memory: \"paging\" has to be false: a dump is physical");
  EXPECT_EQ(with({{"paging", false}, {"protocol", "x"}}),
            "dump-guest-memory: \"protocol\" is fd:NAME or file:PATH");
  EXPECT_EQ(with({{"paging", false}, {"protocol", "fd:x"}}),
            "dump-guest-memory: there is no descriptor \"x\"; give it by getfd first");
  EXPECT_EQ(with({{"paging", false}, {"protocol", "fd:x"}, {"format", "kdump-zlib"}}),
            "dump-guest-memory: \"format\" has to be elf");
  EXPECT_EQ(with({{"paging", false}, {"protocol", "file:/no/such/core"}}),
            "dump-guest-memory: cannot open /no/such/core: No such file or directory; open the "
            "file yourself, pass it by getfd and give \"fd:NAME\" (millctl vm does so)");
  EXPECT_FALSE(guest_.dump_done_);
}

TEST_F(ControlTest, OthersAreServedWhileADeviceIsMade) {
  EXPECT_TRUE(ask("device_add", {{"driver", "disk"}, {"id", "slow"}, {"socket", "/s"}}).is_null());
  Socket first = *std::move(socket_);
  socket_.emplace(directory_ + "/c.sock");
  EXPECT_TRUE(next().contains("QMP"));
  ask("qmp_capabilities");
  EXPECT_EQ(answer("query-status")["status"], "running");
  socket_.emplace(std::move(first));
  ASSERT_TRUE(guest_.add_done_);
  guest_.add_done_(base::fail("no answer"));
  EXPECT_EQ(next()["error"]["desc"], "no answer");
}

}  // namespace
}  // namespace millrace::vmm

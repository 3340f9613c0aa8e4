// A guest in a TOML file, as the whole program reads it.
#include "vmm/option_file.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "vmm/options.hpp"

namespace millrace::vmm {

namespace {

class OptionFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / "millrace-options-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    path = folder + "/guest.toml";
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::optional<Options> parse(const std::string& text, std::vector<const char*> more = {}) {
    std::ofstream{path} << text;
    more.insert(more.begin(), {"millrace-vmm", "--config", path.c_str()});
    testing::internal::CaptureStderr();
    testing::internal::CaptureStdout();
    auto options = parse_options(static_cast<int>(more.size()), more.data(), status);
    said = testing::internal::GetCapturedStdout() + testing::internal::GetCapturedStderr();
    return options;
  }
  // What it says where the file is wrong, without the program's name and the file's folder.
  std::vector<std::string> refused(const std::string& text) {
    EXPECT_FALSE(parse(text)) << text;
    EXPECT_EQ(status, exit_usage);
    std::vector<std::string> lines;
    std::istringstream all{said};
    for (std::string line; std::getline(all, line);) {
      const auto at = line.find(folder + "/");
      if (at != std::string::npos) lines.push_back(line.substr(at + folder.size() + 1));
    }
    return lines;
  }

  std::string folder, path, said;
  int status = -1;
};

constexpr const char* whole = R"(
kernel = "vmlinuz"
initrd = "initrd"
cmdline = "console=ttyS0 quiet, please"
memory = "1G"
cpus = 4
prefault = true
reboot = "restart"

[[disk]]
socket = "/a"
queues = 2

[[net]]
socket = "/b"
mac = "52:54:00:00:00:01"
queue-size = 512
wait = false

[[disk]]
socket = "/c"
)";

TEST_F(OptionFileTest, FunctionsOfTheHost) {
  const auto options = parse(
      "kernel = \"k\"\nvfio-allow = [\"0000:01:10.2\", \"0000:01:10.4\"]\n"
      "[[vfio]]\naddress = \"0000:01:10.0\"\nid = \"nic\"\n");
  ASSERT_TRUE(options) << said;
  ASSERT_EQ(options->devices.size(), 1u);
  EXPECT_EQ(options->devices[0].address, "0000:01:10.0");
  EXPECT_EQ(options->devices[0].id, "nic");
  EXPECT_EQ(options->functions,
            (std::vector<std::string>{"0000:01:10.2", "0000:01:10.4", "0000:01:10.0"}));
  EXPECT_EQ(refused("kernel = \"k\"\nvfio-allow = \"0000:01:10.2\"\n"),
            std::vector<std::string>{"guest.toml:2:14: vfio-allow is text; give a list of texts"});
}

TEST_F(OptionFileTest, SaysWhatACommandLineSays) {
  const auto options = parse(whole);
  ASSERT_TRUE(options) << said;
  EXPECT_EQ(options->boot.kernel, "vmlinuz");
  EXPECT_EQ(options->boot.initrd, "initrd");
  EXPECT_EQ(options->boot.command_line, "console=ttyS0 quiet, please");
  EXPECT_EQ(options->ram.bytes, 1ull << 30);
  EXPECT_TRUE(options->ram.prefault);
  EXPECT_EQ(options->cpus, 4u);
  EXPECT_TRUE(options->restart);
  EXPECT_TRUE(options->sandbox);
  ASSERT_EQ(options->devices.size(), 3u);
  EXPECT_EQ(options->devices[0].socket, "/a");
  EXPECT_EQ(options->devices[0].queues, 2u);
  EXPECT_EQ(options->devices[1].kind, DeviceOption::Kind::net);
  EXPECT_EQ(options->devices[1].mac, "52:54:00:00:00:01");
  EXPECT_EQ(options->devices[1].queue_size, 512u);
  EXPECT_FALSE(options->devices[1].wait);
  EXPECT_EQ(options->devices[2].socket, "/c");
}

TEST_F(OptionFileTest, TheCommandLineCountsInsteadAndAddsDevices) {
  const auto options = parse(whole, {"--memory", "512M", "--cpus=2", "--disk", "socket=/d"});
  ASSERT_TRUE(options) << said;
  EXPECT_EQ(options->ram.bytes, 512ull << 20);
  EXPECT_EQ(options->cpus, 2u);
  EXPECT_EQ(options->boot.kernel, "vmlinuz");
  ASSERT_EQ(options->devices.size(), 4u);
  EXPECT_EQ(options->devices.back().socket, "/d");
}

TEST_F(OptionFileTest, WhatIsWrongIsALineWithItsPlace) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(refused("kernel = \"k\"\nkernle = \"k\"\n"),
            (Lines{"guest.toml:2:1: unknown key \"kernle\"; the keys are the long options of "
                   "millrace-vmm --help, without their dashes"}));
  EXPECT_EQ(refused("kernel = true\nprefault = \"yes\"\ninitrd = \"\"\nnet = 3\ncpus = 1.5\n"
                    "[disk]\nsocket = \"/a\"\n"),
            (Lines{"guest.toml:1:10: kernel is true or false; give text or a number",
                   "guest.toml:2:12: prefault is text; give true or false",
                   "guest.toml:3:10: initrd is empty; give a value, or leave it out",
                   "guest.toml:4:7: net is a number; give tables that begin with [[net]]",
                   "guest.toml:5:8: cpus is a fraction; give text or a number",
                   "guest.toml:6:1: disk is a table; give tables that begin with [[disk]]"}));
  EXPECT_EQ(refused("[[net]]\nsocket = \"/a,b\"\n[[disk]]\n[[disk]]\nqueues = [1]\n"),
            (Lines{"guest.toml:2:10: [[net]]: socket holds a comma, which no such value can; take "
                   "another name",
                   "guest.toml:3:1: [[disk]] is empty; give its keys, such as socket",
                   "guest.toml:5:10: [[disk]]: queues is a list; give text or a number"}));
  EXPECT_EQ(refused("config = \"other.toml\"\n").size(), 1u);
}

TEST_F(OptionFileTest, ABadValueIsNamedWithItsPlace) {
  const std::string start = "kernel = \"k\"\n";
  for (const auto& [text, place, word] : std::vector<std::array<std::string, 3>>{
           {"memory = \"lots\"\n", "guest.toml:2:10: ", "--memory"},
           {"cpus = \"many\"\n", "guest.toml:2:8: ", "--cpus"},
           {"reboot = \"maybe\"\n", "guest.toml:2:10: ", "--reboot"},
           {"ksm = true\n", "guest.toml:2:7: ", "--ksm"},
           {"[[net]]\nsocket = \"/a\"\n[[net]]\nsock = \"/b\"\n", "guest.toml:4:1: ", "sock=/b"},
           {"[[disk]]\nsocket = \"/a\"\n[[disk]]\nsocket = \"/b\"\nmac = \"x\"\n",
            "guest.toml:4:1: ", "mac=x"}}) {
    const auto lines = refused(start + text);
    ASSERT_EQ(lines.size(), 1u) << said;
    EXPECT_TRUE(lines[0].starts_with(place)) << lines[0];
    EXPECT_NE(lines[0].find(word), std::string::npos) << lines[0];
  }
}

TEST_F(OptionFileTest, WhatIsNoTomlOrIsNotThereIsOneLine) {
  const auto lines = refused("kernel = \n");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("guest.toml:1:")) << lines[0];
  EXPECT_EQ(refused("").size(), 1u);
  EXPECT_FALSE(parse("kernel = \"k\"\n", {"--config", "/no/such/file"}));
  EXPECT_NE(said.find("/no/such/file"), std::string::npos);
}

}  // namespace

}  // namespace millrace::vmm

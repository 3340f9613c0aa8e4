#include "daemon/system_check.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

namespace millrace::daemon {
namespace {

using Lines = std::vector<std::string>;
namespace fs = std::filesystem;

class SystemCheck : public testing::Test {
 protected:
  SystemCheck() {
    std::string pattern = (fs::temp_directory_path() / "mr-check-XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
    config_.control_socket = directory_ + "/c.sock";
  }
  ~SystemCheck() override { fs::remove_all(directory_); }

  Lines check() {
    Problems problems;
    check_system(config_, {0, 1, 2}, problems);
    return problems.lines();
  }
  GuestDisk& add_disk(const std::string& name, const std::string& file, bool readonly = false) {
    GuestDisk disk;
    disk.device.name = name;
    disk.device.path = directory_ + "/" + file;
    disk.device.readonly = readonly;
    disk.server.socket = directory_ + "/" + name + ".sock";
    return config_.disks.emplace_back(disk);
  }
  void make_file(const std::string& name, std::uintmax_t size) {
    std::ofstream{directory_ + "/" + name};
    fs::resize_file(directory_ + "/" + name, size);
  }

  std::string directory_;
  Config config_;
};

TEST_F(SystemCheck, AValidConfigurationPasses) {
  make_file("a", 4096);
  add_disk("a", "a");
  config_.cores = {0, 2};
  EXPECT_EQ(check(), Lines{});
}

TEST_F(SystemCheck, NamesACoreThatCannotBeUsed) {
  config_.cores = {1, 7};
  EXPECT_EQ(check(), Lines{"[reactors]: core 7 cannot be used by this process; give some of "
                           "0, 1, 2"});
}

TEST_F(SystemCheck, NamesAReactorThatIsNotThere) {
  make_file("a", 4096);
  add_disk("a", "a").reactors = {1, 2};
  config_.cores = {0, 2};
  EXPECT_EQ(check(), Lines{"[[disk]] a: reactor 2 is not there; give 0 to 1, or more cores to "
                           "[reactors]"});
}

TEST_F(SystemCheck, NamesAMissingImage) {
  add_disk("a", "none");
  EXPECT_EQ(check(), Lines{"[[disk]] a: path " + directory_ +
                           "/none is missing; make it (truncate -s 10G FILE)"});
}

TEST_F(SystemCheck, RefusesADirectoryAndAnOddSizeAsImages) {
  fs::create_directory(directory_ + "/dir");
  make_file("odd", 1000);
  add_disk("a", "dir");
  add_disk("b", "odd");
  EXPECT_EQ(check(),
            (Lines{"[[disk]] a: path " + directory_ +
                       "/dir is neither a file nor a block device; give one of the two",
                   "[[disk]] b: path " + directory_ +
                       "/odd has 1000 bytes; give an image of whole 512 byte sectors, at least "
                       "one"}));
}

TEST_F(SystemCheck, OneImageServesManyReadersOrOneWriter) {
  make_file("a", 4096);
  fs::create_hard_link(directory_ + "/a", directory_ + "/b");
  add_disk("first", "a", true);
  add_disk("second", "b", true);
  EXPECT_EQ(check(), Lines{});
  config_.disks[1].device.readonly = false;
  EXPECT_EQ(check(), Lines{"[[disk]] second: path " + directory_ +
                           "/b is already used by [[disk]] first; give another image, or readonly "
                           "= true to both"});
}

TEST_F(SystemCheck, ASocketDirectoryMayBeMissingButNotItsParent) {
  config_.control_socket = directory_ + "/new/c.sock";
  EXPECT_EQ(check(), Lines{});
  EXPECT_FALSE(fs::exists(directory_ + "/new")) << "a check has no side effect";
  config_.control_socket = directory_ + "/new/er/c.sock";
  EXPECT_EQ(check(), Lines{"[control]: the directory " + directory_ +
                           "/new/er of socket is missing, and so is its parent; make it"});
}

TEST_F(SystemCheck, RefusesASocketPathThatIsAFile) {
  make_file("c.sock", 0);
  EXPECT_EQ(check(), Lines{"[control]: socket " + config_.control_socket +
                           " exists and is no socket; remove it, or give another path"});
}

TEST_F(SystemCheck, RefusesADescriptorThatDoesNotListen) {
  GuestPort port;
  port.device.name = "p";
  port.server.socket = "fd:999";
  config_.ports.push_back(port);
  EXPECT_EQ(check(), Lines{"[[port]] p: descriptor 999 is no listening socket; pass one, or give a "
                           "path"});
}

TEST_F(SystemCheck, MakesASocketDirectoryForItsGroupOnly) {
  ASSERT_TRUE(make_socket_directory(directory_ + "/run/x.sock"));
  ASSERT_TRUE(make_socket_directory(directory_ + "/run/y.sock"));
  struct stat status {};
  ASSERT_EQ(::stat((directory_ + "/run").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0027, 0u);
  EXPECT_FALSE(make_socket_directory(directory_ + "/no/run/x.sock"));
}

TEST(ChooseCores, KeepsTheFirstCoreForTheRest) {
  EXPECT_EQ(choose_cores({5}), (std::vector<unsigned>{5}));
  EXPECT_EQ(choose_cores({0, 1}), (std::vector<unsigned>{1}));
  EXPECT_EQ(choose_cores({0, 1, 2}), (std::vector<unsigned>{1, 2}));
  EXPECT_EQ(choose_cores({0, 2, 4, 6}), (std::vector<unsigned>{4, 6}));
}

}  // namespace
}  // namespace millrace::daemon

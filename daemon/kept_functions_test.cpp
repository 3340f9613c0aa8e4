// What a daemon changed of virtual functions, for the one that comes after a kill -9.
#include "daemon/kept_functions.hpp"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace millrace::daemon {
namespace {

using ::testing::ElementsAre, ::testing::HasSubstr, ::testing::IsEmpty, ::testing::StartsWith;

class KeptFunctions : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = "/tmp/millrace-functions-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    file = kept_functions_file(folder_ + "/control.sock");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  // The line that is said of a file with that text.
  [[nodiscard]] std::string refusal(const std::string& text) const {
    std::ofstream{file} << text;
    const auto taken = take_kept_functions(file);
    return taken ? "" : taken.error().message;
  }

  std::string file;
  const sriov::ChangedVf first{{0, 1, 0, 0}, 0, {0, 1, 0x10, 0}, {.mac = sriov::Mac{}}};
  const sriov::ChangedVf guests{
      {0, 1, 0, 0}, 1, {0, 1, 0x10, 2}, {}, sriov::VfGuest{"web0", {.trust = sriov::Trust{true}}}};
  const sriov::ChangedVf second{{0, 1, 0, 0},
                                3,
                                {0, 1, 0x10, 6},
                                {.mac = sriov::Mac{2, 0, 0, 0, 0, 1},
                                 .vlan = sriov::Vlan{10, 3, true},
                                 .rate = sriov::Rate{100, 0},
                                 .spoof_check = sriov::SpoofCheck{true},
                                 .trust = sriov::Trust{false},
                                 .link = sriov::LinkState::off}};

 private:
  std::string folder_;
};

TEST_F(KeptFunctions, AreReadAsTheyWereWritten) {
  EXPECT_THAT(*take_kept_functions(file), IsEmpty());  // there is none yet
  ASSERT_TRUE(keep_functions(file, {first, guests, second}));
  EXPECT_THAT(*take_kept_functions(file), ElementsAre(first, guests, second));
  ASSERT_TRUE(keep_functions(file, {second}));
  EXPECT_THAT(*take_kept_functions(file), ElementsAre(second));
  ASSERT_TRUE(keep_functions(file, {}));
  EXPECT_FALSE(std::filesystem::exists(file));
  EXPECT_TRUE(keep_functions(file, {}));
}

TEST_F(KeptFunctions, OfAFileThatIsBadOneLineIsSaid) {
  for (const auto* text : {"", "[{", "{}", "[7]", "[{}]", R"([{"physical": "x"}])",
                           R"([{"physical": "01:00.0", "function": "01:10.0", "index": -1}])"}) {
    EXPECT_THAT(refusal(text), StartsWith(file + ": ")) << text;
    EXPECT_THAT(refusal(text), HasSubstr("remove the file")) << text;
  }
  const std::string place = R"([{"physical": "01:00.0", "function": "01:10.0", "index": 0)";
  EXPECT_EQ(refusal(place + "}]"), "");
  for (const auto* more : {R"("mac": "x")", R"("vlan": 4096)", R"("link": 3)", R"("trust": 1)",
                           R"("min_rate": 4294967296)", R"("root": true)", R"("guest": "web0")",
                           R"("guest": "", "set": {})", R"("guest": "web0", "set": {"root": 1})",
                           R"("guest": "web0", "set": 7)"}) {
    EXPECT_NE(refusal(place + ", " + more + "}]"), "") << more;
  }
}

TEST_F(KeptFunctions, WhatCannotBeWrittenIsSaid) {
  const auto kept = keep_functions("/nonsense/control.sock.functions", {first});
  ASSERT_FALSE(kept);
  EXPECT_THAT(kept.error().message, HasSubstr("cannot write /nonsense/"));
}

}  // namespace
}  // namespace millrace::daemon

#include "vmm/profile.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "vmm/testing/machine_dump.hpp"

namespace millrace::vmm {

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream{text};
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(Profile, IsKnownByNameOrRefusedWithTheNames) {
  const auto profile = find_profile("millrace-1");
  ASSERT_TRUE(profile);
  EXPECT_EQ((*profile)->name, "millrace-1");
  const auto other = find_profile("pc-q35-7.2");
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().message,
            "there is no machine profile pc-q35-7.2: this program has millrace-1");
}

// A guest's hardware must not change under it. Whoever has a reason to (before the first release,
// or for another profile) writes the file anew, and reads what changed in it:
//   MILLRACE_WRITE_GOLDEN=1 build/vmm/vmm_test --gtest_filter=Profile.*
TEST(Profile, IsWhatItWas) {
  const auto path = std::string{MILLRACE_GOLDEN} + "/" + std::string{millrace_1.name} + ".txt";
  const auto now = testing::dump_machine();
  if (std::getenv("MILLRACE_WRITE_GOLDEN") != nullptr) std::ofstream{path} << now;
  std::ifstream file{path};
  std::stringstream kept;
  kept << file.rdbuf();
  const auto expected = lines_of(kept.str()), got = lines_of(now);
  ASSERT_FALSE(expected.empty()) << path;
  for (std::size_t i = 0; i < std::min(expected.size(), got.size()); ++i) {
    ASSERT_EQ(got[i], expected[i]) << path << ":" << i + 1;
  }
  EXPECT_EQ(got.size(), expected.size()) << path;
}

}  // namespace

}  // namespace millrace::vmm

// What a configuration's text comes to: for tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "daemon/config.hpp"

namespace millrace::daemon::config_text {

using Lines = std::vector<std::string>;

// Of a text that is right.
inline Config parsed(const std::string& text) {
  Problems problems{"m.toml"};
  auto config = parse_config(text, problems);
  EXPECT_EQ(problems.lines(), Lines{});
  return config;
}

inline Lines refused(const std::string& text) {
  Problems problems{"m.toml"};
  (void)parse_config(text, problems);
  return problems.lines();
}

// The one problem of a text.
inline std::string refused_once(const std::string& text) {
  const auto lines = refused(text);
  EXPECT_EQ(lines.size(), 1u) << ::testing::PrintToString(lines);
  return lines.empty() ? "" : lines.front();
}

}  // namespace millrace::daemon::config_text

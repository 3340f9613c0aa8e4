// Problems: everything that is wrong with a configuration, one line each, in the order of the file.
// Thread: control.
#pragma once

#include <string>
#include <vector>

#include "daemon/value.hpp"

namespace millrace::daemon {

class Problems {
 public:
  // `file` as the user named it; empty: the text came in a command and has no positions.
  explicit Problems(std::string file = {}) : file_{std::move(file)} {}

  void add(Position at, const std::string& line);
  [[nodiscard]] bool none() const { return found_.empty(); }
  // "FILE:12:3: LINE"; the position is left out where there is none.
  [[nodiscard]] std::vector<std::string> lines() const;
  // All lines in one, for the answer to a command.
  [[nodiscard]] std::string joined() const;

 private:
  struct Problem {
    Position at;
    std::string line;
  };
  std::string file_;
  std::vector<Problem> found_;
};

}  // namespace millrace::daemon

#include "daemon/problems.hpp"

#include <algorithm>
#include <utility>

#include "base/one_line.hpp"

namespace millrace::daemon {

void Problems::add(Position at, const std::string& line) {
  found_.push_back({at, base::one_line(line)});  // names and keys are as they were written
}

std::vector<std::string> Problems::lines() const {
  auto sorted = found_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Problem& a, const Problem& b) {
    return std::pair{a.at.line, a.at.column} < std::pair{b.at.line, b.at.column};
  });
  std::vector<std::string> lines;
  for (const auto& problem : sorted) {
    std::string prefix;
    if (!file_.empty()) prefix = file_ + ":";
    if (problem.at.line != 0) {
      prefix += std::to_string(problem.at.line) + ":" + std::to_string(problem.at.column) + ":";
    }
    if (!prefix.empty()) prefix += " ";
    lines.push_back(prefix + problem.line);
  }
  return lines;
}

std::string Problems::joined() const {
  std::string all;
  for (const auto& line : lines()) all += (all.empty() ? "" : "; also: ") + line;
  return all;
}

}  // namespace millrace::daemon

// Arguments: a command's arguments, read key by key, and what is wrong with them in one line.
//
// A key that is missing or has the wrong type answers a default; finish() then says so, and says
// which keys nobody asked for. Thread: the loop's.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace millrace::qmp {

class Arguments {
 public:
  // `arguments` (an object) outlives this. `command` is for the line.
  Arguments(const nlohmann::json& arguments, std::string_view command)
      : arguments_{arguments}, command_{command} {}

  // Has to be there, and not be empty.
  [[nodiscard]] std::string text(const std::string& key);
  [[nodiscard]] std::optional<std::string> optional_text(const std::string& key);
  [[nodiscard]] std::optional<bool> optional_boolean(const std::string& key);
  // A whole number from `least` to `most`.
  [[nodiscard]] std::optional<std::uint64_t> optional_number(const std::string& key,
                                                             std::uint64_t least,
                                                             std::uint64_t most);
  // Something is wrong that only the caller can know; the first line counts.
  void wrong(const std::string& line);
  // Every key was asked for by now. The line; empty: all is well.
  [[nodiscard]] std::string finish();

 private:
  const nlohmann::json* find(const std::string& key);

  const nlohmann::json& arguments_;
  const std::string command_;
  std::set<std::string> known_;
  std::string line_;
};

}  // namespace millrace::qmp

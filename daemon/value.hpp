// Value: one parsed value of a configuration, from TOML or JSON, that knows where it was written.
// Everything that reads a configuration reads Values, so that a file and a command mean the same.
// Thread: control.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.hpp"

namespace millrace::daemon {

// Where a value begins, from 1. Line 0: nowhere (it came in a command).
struct Position {
  unsigned line = 0, column = 0;
};

class Value {
 public:
  struct Member;
  struct Other {       // nothing that a key of ours takes
    const char* what;  // nullptr: null
  };
  using Array = std::vector<Value>;
  using Table = std::vector<Member>;  // in the order of the text

  using Content = std::variant<Other, bool, std::int64_t, double, std::string, Array, Table>;

  Value();
  Value(Content content, Position at);

  [[nodiscard]] Position at() const { return at_; }
  [[nodiscard]] const bool* boolean() const { return std::get_if<bool>(&content_); }
  [[nodiscard]] const std::int64_t* integer() const { return std::get_if<std::int64_t>(&content_); }
  [[nodiscard]] const std::string* text() const { return std::get_if<std::string>(&content_); }
  [[nodiscard]] const Array* array() const { return std::get_if<Array>(&content_); }
  [[nodiscard]] const Table* table() const { return std::get_if<Table>(&content_); }
  [[nodiscard]] bool null() const;
  [[nodiscard]] bool is_empty_text() const { return text() != nullptr && text()->empty(); }
  // "a number", "text", "a list"...: what it is, for an error line.
  [[nodiscard]] const char* kind() const;

 private:
  Content content_;
  Position at_;
};

struct Value::Member {
  std::string key;
  Position at;  // of the key
  Value value;
};

// Here, because a Table can be made and moved only where its members are known.
inline Value::Value() = default;
inline Value::Value(Content content, Position at) : content_{std::move(content)}, at_{at} {}

// A TOML text. A syntax error is Problem-like: the position and one line.
struct SyntaxError {
  Position at;
  std::string line;
};
[[nodiscard]] base::Result<Value, SyntaxError> value_from_toml(std::string_view text);

// A JSON value, positions unknown.
[[nodiscard]] Value value_from_json(const nlohmann::json& json);

}  // namespace millrace::daemon

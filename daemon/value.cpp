#include "daemon/value.hpp"

#include <toml++/toml.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

namespace millrace::daemon {

namespace {

Position position_of(const toml::source_region& source) {
  return {static_cast<unsigned>(source.begin.line), static_cast<unsigned>(source.begin.column)};
}

// A dotted key makes a table for each dot, and tables are walked by recursion: the number of the
// first line with far more dots than anybody writes; 0: there is none.
unsigned line_of_dots(std::string_view text) {
  constexpr unsigned dots_max = 1000;
  unsigned line = 1, dots = 0;
  for (const char c : text) {
    if (c == '.' && ++dots > dots_max) return line;
    if (c == '\n') ++line, dots = 0;
  }
  return 0;
}

Value convert(const toml::node& node);

Value::Content convert_table(const toml::table& table) {
  Value::Table members;
  for (const auto& [key, node] : table) {
    members.push_back({std::string{key.str()}, position_of(key.source()), convert(node)});
  }
  // toml++ sorts by key; a reader wants the order of the file.
  std::stable_sort(members.begin(), members.end(), [](const auto& a, const auto& b) {
    return std::pair{a.at.line, a.at.column} < std::pair{b.at.line, b.at.column};
  });
  return members;
}

Value convert(const toml::node& node) {
  Value::Content content = Value::Other{"a date or a time"};
  if (const auto* table = node.as_table()) {
    content = convert_table(*table);
  } else if (const auto* array = node.as_array()) {
    Value::Array values;
    for (const auto& element : *array) values.push_back(convert(element));
    content = std::move(values);
  } else if (const auto* text = node.as_string()) {
    content = text->get();
  } else if (const auto* integer = node.as_integer()) {
    content = integer->get();
  } else if (const auto* real = node.as_floating_point()) {
    content = real->get();
  } else if (const auto* boolean = node.as_boolean()) {
    content = boolean->get();
  }
  return Value{std::move(content), position_of(node.source())};
}

}  // namespace

const char* Value::kind() const {
  if (null()) return "null";
  if (const auto* other = std::get_if<Other>(&content_)) return other->what;
  static constexpr const char* names[] = {"",     "true or false", "a number", "a fraction",
                                          "text", "a list",        "a table"};
  return names[content_.index()];
}

bool Value::null() const {
  const auto* other = std::get_if<Other>(&content_);
  return other != nullptr && other->what == nullptr;
}

base::Result<Value, SyntaxError> value_from_toml(std::string_view text) {
  if (const unsigned line = line_of_dots(text); line != 0) {
    return base::Unexpected{SyntaxError{{line, 1}, "a line with more than 1000 dots"}};
  }
  try {
    return convert(toml::parse(text));
  } catch (const toml::parse_error& error) {
    std::string line{error.description()};
    std::replace(line.begin(), line.end(), '\n', ' ');
    return base::Unexpected{SyntaxError{position_of(error.source()), std::move(line)}};
  }
}

Value value_from_json(const nlohmann::json& json) {
  Value::Content content;
  if (json.is_object()) {
    Value::Table members;
    for (const auto& [key, value] : json.items()) {
      members.push_back({key, {}, value_from_json(value)});
    }
    content = std::move(members);
  } else if (json.is_array()) {
    Value::Array values;
    for (const auto& element : json) values.push_back(value_from_json(element));
    content = std::move(values);
  } else if (json.is_string()) {
    content = json.get<std::string>();
  } else if (json.is_boolean()) {
    content = json.get<bool>();
  } else if (json.is_number_unsigned() &&
             json.get<std::uint64_t>() >
                 static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    content = Value::Other{"a number that is too large"};
  } else if (json.is_number_integer()) {
    content = json.get<std::int64_t>();
  } else if (json.is_number_float()) {
    content = json.get<double>();
  }
  return Value{std::move(content), {}};
}

}  // namespace millrace::daemon

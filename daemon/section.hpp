// Section: reads one table of a configuration, key by key, and notes every problem as a line that
// names the section, the key, what is wrong and what to give instead.
//
// Each reader leaves `out` as it is when the key is absent or wrong. Thread: control.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/problems.hpp"
#include "daemon/value.hpp"

namespace millrace::daemon {

class Section {
 public:
  // `title` begins every line: "[[disk]] web0-root". `table` and `problems` must outlive it.
  Section(const Value::Table& table, Position at, std::string title, Problems& problems);
  // Notes every key that nobody asked for.
  void finish();

  void text(const char* key, std::string& out);
  void flag(const char* key, bool& out);
  template <class Number>
  void number(const char* key, Number& out, std::uint64_t min, std::uint64_t max) {
    std::uint64_t value = out;
    read_number(key, value, min, max);
    out = static_cast<Number>(value);
  }
  // An integer (bytes) or text with a unit: "16MiB".
  void size(const char* key, std::uint64_t& out, std::uint64_t min, std::uint64_t max);
  // A list of integers, each at most once.
  template <class Number>
  void numbers(const char* key, std::vector<Number>& out, std::uint64_t min, std::uint64_t max) {
    for (const auto value : read_numbers(key, min, max)) out.push_back(static_cast<Number>(value));
  }
  template <class Choice>
  void choice(const char* key, Choice& out,
              std::initializer_list<std::pair<std::string_view, Choice>> choices) {
    std::vector<std::string_view> names;
    for (const auto& [name, value] : choices) names.push_back(name);
    const auto at = read_choice(key, names);
    if (at < names.size()) out = choices.begin()[at].second;
  }

  [[nodiscard]] bool has(std::string_view key);
  // Where `key` is written, or the section where it is not.
  [[nodiscard]] Position at(std::string_view key) const;
  [[nodiscard]] const std::string& title() const { return title_; }
  // The raw value, noted as asked for; nullptr where it is absent.
  [[nodiscard]] const Value* find(std::string_view key);
  // A missing key that must be there.
  void require(const char* key, std::string_view example);
  // Notes "TITLE: line" at `key`, or at the section where the key is absent.
  void problem(std::string_view key, std::string line);

 private:
  void read_number(const char* key, std::uint64_t& out, std::uint64_t min, std::uint64_t max);
  std::vector<std::uint64_t> read_numbers(const char* key, std::uint64_t min, std::uint64_t max);
  std::size_t read_choice(const char* key, const std::vector<std::string_view>& names);
  void wrong_type(const char* key, const Value& value, std::string_view wanted);

  const Value::Table& table_;
  Position at_;
  std::string title_;
  Problems& problems_;
  std::vector<std::string> known_;
};

// The key of `known` that `key` was probably meant to be; empty: none is near.
[[nodiscard]] std::string nearest(std::string_view key, const std::vector<std::string>& known);

}  // namespace millrace::daemon

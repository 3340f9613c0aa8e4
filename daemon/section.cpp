#include "daemon/section.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/one_line.hpp"
#include "base/units.hpp"

namespace millrace::daemon {

namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

std::string range(std::uint64_t min, std::uint64_t max) {
  return std::to_string(min) + " to " + std::to_string(max);
}

}  // namespace

std::string nearest(std::string_view key, const std::vector<std::string>& known) {
  std::string best;
  std::size_t distance = std::max<std::size_t>(2, key.size() / 3) + 1;
  for (const auto& name : known) {
    if (const auto d = edit_distance(key, name); d < distance) distance = d, best = name;
  }
  return best;
}

Section::Section(const Value::Table& table, Position at, std::string title, Problems& problems)
    : table_{table}, at_{at}, title_{std::move(title)}, problems_{problems} {}

void Section::finish() {
  for (const auto& member : table_) {
    if (std::find(known_.begin(), known_.end(), member.key) != known_.end()) continue;
    std::string line = title_ + ": unknown key \"" + member.key + "\"; ";
    if (const auto hint = nearest(member.key, known_); !hint.empty()) {
      line += "did you mean \"" + hint + "\"?";
    } else {
      line += "the keys are";
      for (const auto& key : known_) line += (&key == &known_.front() ? " " : ", ") + key;
    }
    problems_.add(member.at, std::move(line));
  }
}

const Value* Section::find(std::string_view key) {
  if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.emplace_back(key);
  for (const auto& member : table_) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

bool Section::has(std::string_view key) {
  return find(key) != nullptr;
}

Position Section::at(std::string_view key) const {
  for (const auto& member : table_) {
    if (member.key == key) return member.value.at();
  }
  return at_;
}

void Section::problem(std::string_view key, std::string line) {
  problems_.add(at(key), title_ + ": " + std::move(line));
}

void Section::require(const char* key, std::string_view example) {
  if (has(key)) return;
  problems_.add(at_,
                title_ + ": " + key + " is missing; give " + key + " = " + std::string{example});
}

void Section::wrong_type(const char* key, const Value& value, std::string_view wanted) {
  problem(key, std::string{key} + " is " + value.kind() + "; give " + std::string{wanted});
}

void Section::text(const char* key, std::string& out) {
  const auto* value = find(key);
  if (value == nullptr) return;
  const auto* text = value->text();
  if (text == nullptr) return wrong_type(key, *value, "text in quotes");
  if (base::one_line(*text) != *text) {
    return problem(key, std::string{key} + " holds a control character; give text of one line");
  }
  out = *text;
}

void Section::flag(const char* key, bool& out) {
  const auto* value = find(key);
  if (value == nullptr) return;
  if (value->boolean() == nullptr) return wrong_type(key, *value, "true or false");
  out = *value->boolean();
}

void Section::read_number(const char* key, std::uint64_t& out, std::uint64_t min,
                          std::uint64_t max) {
  const auto* value = find(key);
  if (value == nullptr) return;
  const auto* integer = value->integer();
  if (integer == nullptr) return wrong_type(key, *value, "a whole number, " + range(min, max));
  if (*integer < 0 || static_cast<std::uint64_t>(*integer) < min ||
      static_cast<std::uint64_t>(*integer) > max) {
    return problem(
        key, std::string{key} + " is " + std::to_string(*integer) + "; give " + range(min, max));
  }
  out = static_cast<std::uint64_t>(*integer);
}

std::vector<std::uint64_t> Section::read_numbers(const char* key, std::uint64_t min,
                                                 std::uint64_t max) {
  std::vector<std::uint64_t> numbers;
  const auto* value = find(key);
  if (value == nullptr) return numbers;
  const auto* array = value->array();
  if (array == nullptr) {
    wrong_type(key, *value, "a list of whole numbers, " + range(min, max));
    return numbers;
  }
  for (const auto& element : *array) {
    const auto* integer = element.integer();
    std::string what;
    if (integer == nullptr) {
      what = " holds " + std::string{element.kind()};
    } else if (*integer < 0 || static_cast<std::uint64_t>(*integer) < min ||
               static_cast<std::uint64_t>(*integer) > max) {
      what = " holds " + std::to_string(*integer);
    } else if (const auto number = static_cast<std::uint64_t>(*integer);
               std::find(numbers.begin(), numbers.end(), number) != numbers.end()) {
      problems_.add(element.at(), title_ + ": " + key + " holds " + std::to_string(number) +
                                      " twice; give each number once");
      continue;
    } else {
      numbers.push_back(number);
      continue;
    }
    problems_.add(element.at(),
                  title_ + ": " + key + what + "; give whole numbers, " + range(min, max));
  }
  return numbers;
}

void Section::size(const char* key, std::uint64_t& out, std::uint64_t min, std::uint64_t max) {
  const auto* value = find(key);
  if (value == nullptr) return;
  std::optional<std::uint64_t> bytes;
  std::string given;
  if (const auto* integer = value->integer()) {
    given = std::to_string(*integer);
    if (*integer >= 0) bytes = static_cast<std::uint64_t>(*integer);
  } else if (const auto* text = value->text()) {
    given = "\"" + *text + "\"";
    const auto parsed = base::parse_size(*text);
    if (!parsed) {
      return problem(key, std::string{key} + " is " + given + "; give a size like \"16MiB\"");
    }
    bytes = *parsed;
  } else {
    return wrong_type(key, *value, "a size like \"16MiB\"");
  }
  if (!bytes || *bytes < min || *bytes > max) {
    return problem(key, std::string{key} + " is " + given + "; give " + base::format_bytes(min) +
                            " to " + base::format_bytes(max));
  }
  out = *bytes;
}

std::size_t Section::read_choice(const char* key, const std::vector<std::string_view>& names) {
  const auto* value = find(key);
  if (value == nullptr) return names.size();
  std::string wanted;
  for (const auto& name : names) {
    if (!wanted.empty()) wanted += &name == &names.back() ? " or " : ", ";
    wanted += "\"" + std::string{name} + "\"";
  }
  const auto* text = value->text();
  if (text == nullptr) {
    wrong_type(key, *value, wanted);
    return names.size();
  }
  const auto found = std::find(names.begin(), names.end(), *text);
  if (found == names.end()) {
    problem(key, std::string{key} + " is \"" + *text + "\"; give " + wanted);
  }
  return static_cast<std::size_t>(found - names.begin());
}

}  // namespace millrace::daemon

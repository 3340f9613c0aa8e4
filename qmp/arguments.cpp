#include "qmp/arguments.hpp"

namespace millrace::qmp {

using nlohmann::json;

const json* Arguments::find(const std::string& key) {
  known_.insert(key);
  const auto found = arguments_.find(key);
  return found == arguments_.end() ? nullptr : &*found;
}

void Arguments::wrong(const std::string& line) {
  if (line_.empty()) line_ = command_ + ": " + line;
}

std::string Arguments::text(const std::string& key) {
  const auto value = optional_text(key);
  if (!value) wrong("\"" + key + "\" is missing");
  if (value && value->empty()) wrong("\"" + key + "\" is empty");
  return value.value_or("");
}

std::optional<std::string> Arguments::optional_text(const std::string& key) {
  const auto* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    wrong("\"" + key + "\" has to be text");
    return std::nullopt;
  }
  auto text = value->get<std::string>();
  // A path with such a byte in it would be another path to the system.
  if (text.find('\0') != std::string::npos) wrong("\"" + key + "\" has a zero byte in it");
  return text;
}

std::optional<bool> Arguments::optional_boolean(const std::string& key) {
  const auto* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    wrong("\"" + key + "\" has to be true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::uint64_t> Arguments::optional_number(const std::string& key, std::uint64_t least,
                                                        std::uint64_t most) {
  const auto* const value = find(key);
  if (value == nullptr) return std::nullopt;
  const bool whole = value->is_number_unsigned() ||
                     (value->is_number_integer() && value->get<std::int64_t>() >= 0);
  const auto number = whole ? value->get<std::uint64_t>() : 0;
  if (!whole || number < least || number > most) {
    wrong("\"" + key + "\" has to be a whole number from " + std::to_string(least) + " to " +
          std::to_string(most));
    return std::nullopt;
  }
  return number;
}

std::string Arguments::finish() {
  for (const auto& [key, value] : arguments_.items()) {
    if (!known_.contains(key)) wrong("there is no argument \"" + key + "\"");
  }
  return line_;
}

}  // namespace millrace::qmp

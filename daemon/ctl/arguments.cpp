#include "daemon/ctl/arguments.hpp"

#include <algorithm>
#include <array>
#include <string_view>

namespace millrace::ctl {

namespace {

using nlohmann::json;

// Keys whose value is text, whatever it looks like: a disk may be called 7.
constexpr std::array<std::string_view, 15> text_keys{
    "name",   "id",     "socket",      "mode",    "mac",     "path", "serial",   "size",
    "device", "direct", "permissions", "backend", "console", "to",   "direction"};

// "wan0,wan1"
json names_in(std::string_view text) {
  auto names = json::array();
  for (std::size_t comma = 0; comma != std::string_view::npos;) {
    comma = text.find(',');
    names.push_back(text.substr(0, comma));
    if (comma != std::string_view::npos) text.remove_prefix(comma + 1);
  }
  return names;
}

json value_of(std::string_view kind, std::string_view key, const std::string& text) {
  // A port's is an uplink's name, a disk's a word.
  const bool flag = kind == "uplink" && key == "direct";
  if (!flag && std::find(text_keys.begin(), text_keys.end(), key) != text_keys.end()) return text;
  if ((key == "trunk" || key == "reactors") && !text.starts_with('[')) {
    const auto list = json::parse("[" + text + "]", nullptr, false);
    if (!list.is_discarded()) return list;
  }
  if ((key == "members" || key == "from") && !text.starts_with('[')) return names_in(text);
  const auto value = json::parse(text, nullptr, false);
  // "16MiB", a word: text as it is; the daemon says what is wrong with it.
  if (value.is_number() || value.is_boolean() || value.is_array()) return value;
  return text;
}

}  // namespace

base::Result<json> parse_arguments(const std::vector<std::string>& words, std::string_view kind) {
  json arguments = json::object();
  for (const auto& word : words) {
    const auto sign = word.find('=');
    if (sign == std::string::npos || sign == 0) {
      return base::fail("\"" + word + "\" is not key=value");
    }
    const auto key = word.substr(0, sign);
    if (arguments.contains(key)) return base::fail("the key " + key + " is given twice");
    arguments[key] = value_of(kind, key, word.substr(sign + 1));
  }
  return arguments;
}

}  // namespace millrace::ctl

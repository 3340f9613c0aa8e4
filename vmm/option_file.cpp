#include "vmm/option_file.hpp"

#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/error.hpp"

namespace millrace::vmm {

using base::Result;

namespace {

std::string place_of(const std::string& path, const toml::source_region& source) {
  return path + ":" + std::to_string(source.begin.line) + ":" +
         std::to_string(source.begin.column) + ": ";
}

const char* kind_of(const toml::node& node) {
  if (node.is_string()) return "text";
  if (node.is_integer()) return "a number";
  if (node.is_boolean()) return "true or false";
  if (node.is_floating_point()) return "a fraction";
  if (node.is_table()) return "a table";
  return node.is_array() ? "a list" : "a date or a time";
}

// As it stands on a command line; none for what has no such form.
std::optional<std::string> text_of(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  return std::nullopt;
}

// The members, in the order of the file: toml++ sorts them by key.
std::vector<std::pair<const toml::key*, const toml::node*>> members_of(const toml::table& table) {
  std::vector<std::pair<const toml::key*, const toml::node*>> members;
  for (const auto& [key, node] : table) members.emplace_back(&key, &node);
  std::ranges::stable_sort(members, [](const auto& a, const auto& b) {
    const auto &first = a.first->source().begin, &second = b.first->source().begin;
    return std::pair{first.line, first.column} < std::pair{second.line, second.column};
  });
  return members;
}

}  // namespace

// Turns the tables of one file into an OptionFile.
class OptionReader {
 public:
  OptionReader(const std::string& path, const CLI::App& app, const std::vector<std::string>& given)
      : path_{path}, app_{app}, given_{given} {}

  OptionFile read(const toml::table& root) {
    for (const auto& [key, node] : members_of(root)) read_member(*key, *node);
    // Tables of one name are one list to TOML; a guest's slots follow the order of the file.
    std::ranges::stable_sort(file_.words_, {}, [](const auto& word) { return word.line; });
    return std::move(file_);
  }

 private:
  void read_member(const toml::key& key, const toml::node& node) {
    const std::string name{key.str()}, dashed = "--" + name;
    const auto* const option = app_.get_option_no_throw(dashed);
    if (name == "config" || name == "help" || name == "version" || option == nullptr) {
      return problem(key.source(), "unknown key \"" + name +
                                       "\"; the keys are the long options of " +
                                       "millrace-vmm --help, without their dashes");
    }
    const bool flag = option->get_items_expected_max() == 0;
    const bool many = option->get_items_expected_max() > 1;
    if (!many && is_given(dashed)) return;
    if (flag) return read_flag(name, node);
    if (name == "vfio-allow") return read_list(name, node);
    if (many) return read_many(name, node);
    const auto text = text_of(node);
    if (!text) return wrong_kind(name, node, "text or a number");
    if (text->empty()) {
      return problem(node.source(), name + " is empty; give a value, or leave it out");
    }
    add(dashed, *text, node);
  }

  void read_flag(const std::string& name, const toml::node& node) {
    const auto* const flag = node.as_boolean();
    if (flag == nullptr) return wrong_kind(name, node, "true or false");
    if (flag->get()) add("--" + name, {}, node);
  }

  // One that is given many times, and is no device.
  void read_list(const std::string& name, const toml::node& node) {
    const auto* const list = node.as_array();
    const bool texts = list != nullptr && std::ranges::all_of(*list, [](const toml::node& one) {
                         return one.is_string();
                       });
    if (!texts) return wrong_kind(name, node, "a list of texts");
    for (const auto& one : *list) add("--" + name, one.as_string()->get(), one);
  }

  void read_many(const std::string& name, const toml::node& node) {
    const auto* const list = node.as_array();
    const bool tables = list != nullptr && std::ranges::all_of(*list, [](const toml::node& one) {
                          return one.is_table();
                        });
    if (!tables) return wrong_kind(name, node, "tables that begin with [[" + name + "]]");
    for (const auto& one : *list) read_table(name, *one.as_table());
  }

  void read_table(const std::string& name, const toml::table& table) {
    std::string value;
    for (const auto& [key, node] : members_of(table)) {
      const std::string inner{key->str()};
      auto text = text_of(*node);
      if (const auto* flag = node->as_boolean()) text = flag->get() ? "yes" : "no";
      if (!text) return wrong_kind("[[" + name + "]]: " + inner, *node, "text or a number");
      if (text->find(',') != std::string::npos) {
        return problem(node->source(), "[[" + name + "]]: " + inner +
                                           " holds a comma, which no such value can; take another "
                                           "name");
      }
      value += (value.empty() ? "" : ",") + inner + "=" + *text;
    }
    if (value.empty()) {
      return problem(table.source(), "[[" + name + "]] is empty; give its keys, such as socket");
    }
    add("--" + name, value, table);
  }

  [[nodiscard]] bool is_given(const std::string& dashed) const {
    return std::ranges::any_of(given_, [&](const std::string& word) {
      return word == dashed || word.starts_with(dashed + "=");
    });
  }
  void add(const std::string& option, const std::string& value, const toml::node& node) {
    file_.words_.push_back(
        {option, value, place_of(path_, node.source()), node.source().begin.line});
  }
  void wrong_kind(const std::string& name, const toml::node& node, const std::string& wanted) {
    problem(node.source(), name + " is " + kind_of(node) + "; give " + wanted);
  }
  void problem(const toml::source_region& source, const std::string& line) {
    file_.problems_.push_back(place_of(path_, source) + line);
  }

  const std::string& path_;
  const CLI::App& app_;
  const std::vector<std::string>& given_;
  OptionFile file_;
};

Result<OptionFile> OptionFile::read(const std::string& path, const CLI::App& app,
                                    const std::vector<std::string>& given) {
  std::ifstream file{path};
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return base::fail("cannot read the file of options " + path +
                      ": see that it is there, not empty and may be read");
  }
  try {
    return OptionReader{path, app, given}.read(toml::parse(text.str()));
  } catch (const toml::parse_error& error) {
    std::string line{error.description()};
    std::ranges::replace(line, '\n', ' ');
    return base::fail(place_of(path, error.source()) + line);
  }
}

std::vector<std::string> OptionFile::words() const {
  std::vector<std::string> words;
  for (const auto& word : words_) {
    words.push_back(word.value.empty() ? word.option : word.option + "=" + word.value);
  }
  return words;
}

// The value tells one device from another; other options are there once.
std::string OptionFile::place_in(const std::string& error) const {
  const auto names = [&error](const std::string& what) {
    const auto at = error.find(what);
    return at != std::string::npos && (at == 0 || error[at - 1] == ' ');
  };
  for (const auto& word : words_) {
    if (!word.value.empty() && names(word.option + " " + word.value + ":")) return word.place;
  }
  for (const auto& word : words_) {
    if (names(word.option + ":") || names(word.option + " ")) return word.place;
  }
  return {};
}

}  // namespace millrace::vmm

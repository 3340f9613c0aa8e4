#include "daemon/kept_functions.hpp"

#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.hpp"
#include "base/mac.hpp"
#include "daemon/replace_file.hpp"
#include "qmp/arguments.hpp"

namespace millrace::daemon {

using nlohmann::json;
using sriov::ChangedVf;

namespace {

constexpr std::size_t functions_max = 4096;
constexpr std::uint64_t mbits_max = 0xffffffff;

void write_values(json& out, const sriov::VfValues& before) {
  if (before.mac) out["mac"] = base::format_mac(*before.mac);
  if (before.vlan) {
    out["vlan"] = before.vlan->id;
    out["qos"] = before.vlan->qos;
    out["service_tag"] = before.vlan->service_tag;
  }
  if (before.rate) {
    out["min_rate"] = before.rate->min;
    out["max_rate"] = before.rate->max;
  }
  if (before.spoof_check) out["spoof_check"] = before.spoof_check->on;
  if (before.trust) out["trust"] = before.trust->on;
  if (before.link) out["link"] = static_cast<std::uint32_t>(*before.link);
}

json json_of_function(const ChangedVf& changed) {
  json out = {{"physical", sriov::format(changed.physical)},
              {"index", changed.index},
              {"function", sriov::format(changed.function)}};
  write_values(out, changed.before);
  if (changed.guest) {
    out["guest"] = changed.guest->name;
    out["set"] = json::object();
    write_values(out["set"], changed.guest->values);
  }
  return out;
}

void read_values(qmp::Arguments& said, sriov::VfValues& before) {
  if (const auto mac = said.optional_text("mac")) {
    before.mac = base::parse_mac(*mac);
    if (!before.mac) said.wrong("mac " + *mac + " is none");
  }
  const auto vlan = said.optional_number("vlan", 0, 4095), qos = said.optional_number("qos", 0, 7);
  const auto service = said.optional_boolean("service_tag");
  if (vlan && qos && service) {
    before.vlan =
        sriov::Vlan{static_cast<std::uint16_t>(*vlan), static_cast<std::uint8_t>(*qos), *service};
  }
  const auto min = said.optional_number("min_rate", 0, mbits_max);
  const auto max = said.optional_number("max_rate", 0, mbits_max);
  if (min && max) {
    before.rate = sriov::Rate{static_cast<std::uint32_t>(*min), static_cast<std::uint32_t>(*max)};
  }
  if (const auto on = said.optional_boolean("spoof_check")) {
    before.spoof_check = sriov::SpoofCheck{*on};
  }
  if (const auto on = said.optional_boolean("trust")) before.trust = sriov::Trust{*on};
  if (const auto link = said.optional_number("link", 0, 2)) {
    before.link = static_cast<sriov::LinkState>(*link);
  }
}

base::Result<ChangedVf> function_of(const json& all) {
  if (!all.is_object()) return base::fail("a function is no object");
  auto entry = all;
  const auto set = entry.value("set", json{});
  entry.erase("set");
  qmp::Arguments said{entry, "a function"};
  const auto physical = sriov::parse_pci_address(said.text("physical"));
  const auto function = sriov::parse_pci_address(said.text("function"));
  const auto index = said.optional_number("index", 0, 0xffff);
  ChangedVf out;
  read_values(said, out.before);
  if (!physical || !function || !index) said.wrong("a function without its place");
  if (const auto guest = said.optional_text("guest")) {
    out.guest = sriov::VfGuest{*guest, {}};
    if (guest->empty() || !set.is_object()) said.wrong("a guest's function without its settings");
  }
  if (const auto line = said.finish(); !line.empty()) return base::fail(line);
  if (out.guest) {
    qmp::Arguments its{set, "a guest's function"};
    read_values(its, out.guest->values);
    if (const auto line = its.finish(); !line.empty()) return base::fail(line);
  }
  out.physical = *physical;
  out.function = *function;
  out.index = static_cast<unsigned>(*index);
  return out;
}

}  // namespace

std::string kept_functions_file(const std::string& control_socket) {
  return control_socket + ".functions";
}

base::Result<void> keep_functions(const std::string& path, const std::vector<ChangedVf>& changed) {
  if (changed.empty()) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return base::fail_errno("cannot remove " + path);
    }
    return {};
  }
  auto all = json::array();
  for (const auto& each : changed) all.push_back(json_of_function(each));
  return replace_file(path, all.dump(2) + "\n");
}

base::Result<std::vector<ChangedVf>> take_kept_functions(const std::string& path) {
  const auto bad = [&](const std::string& why) {
    return base::fail(path + ": " + why +
                      "; the settings of virtual functions that a daemon before this one changed "
                      "stay as they are, and which ones guests have is not known: look at them "
                      "(millctl pf list), and remove the file");
  };
  std::vector<ChangedVf> out;
  std::ifstream file{path};
  if (!file) {
    if (errno == ENOENT) return out;
    return bad(base::fail_errno("cannot be read").error.message);
  }
  std::ostringstream text;
  text << file.rdbuf();
  const auto said = json::parse(text.str(), nullptr, false);
  if (!said.is_array() || said.size() > functions_max) {
    return bad("is no list of functions that this program wrote");
  }
  for (const auto& entry : said) {
    auto function = function_of(entry);
    if (!function) return bad(function.error().message);
    out.push_back(*std::move(function));
  }
  return out;
}

}  // namespace millrace::daemon

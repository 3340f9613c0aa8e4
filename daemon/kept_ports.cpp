#include "daemon/kept_ports.hpp"

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.hpp"
#include "daemon/replace_file.hpp"
#include "qmp/arguments.hpp"
#include "virtio/wire/console.hpp"

namespace millrace::daemon {

using base::fail, base::fail_errno;
using guest::PortSettings;
using nlohmann::json;

namespace {

json json_of(const PortSettings& port) {
  json out = {{"name", port.name},
              {"socket", port.socket},
              {"permissions", port.permissions},
              {"terminal", port.terminal}};
  if (port.id) out["id"] = *port.id;
  return out;
}

json json_of(const std::vector<PortSettings>& ports) {
  auto out = json::array();
  for (const auto& port : ports) out.push_back(json_of(port));
  return out;
}

base::Result<PortSettings> port_of(const json& entry) {
  if (!entry.is_object()) return fail("a port is no object");
  qmp::Arguments said{entry, "a port"};
  PortSettings port;
  port.name = said.text("name");
  port.socket = said.text("socket");
  port.permissions =
      static_cast<unsigned>(said.optional_number("permissions", 0, 0777).value_or(0660));
  port.terminal = said.optional_boolean("terminal").value_or(false);
  const auto id = said.optional_number("id", 0, virtio::wire::console_ports_max - 1);
  if (id) port.id = static_cast<unsigned>(*id);
  if (const auto line = said.finish(); !line.empty()) return fail(line);
  return port;
}

base::Result<std::vector<PortSettings>> ports_of(const json& entries) {
  if (entries.size() > virtio::wire::console_ports_max) return fail("there are too many ports");
  std::vector<PortSettings> out;
  for (const auto& entry : entries) {
    auto port = port_of(entry);
    if (!port) return base::Unexpected{port.error()};
    out.push_back(*std::move(port));
  }
  return out;
}

}  // namespace

base::Result<void> take_kept_ports(GuestCompanion& companion) {
  auto* const console = std::get_if<guest::ConsoleSettings>(&companion.device.settings);
  if (console == nullptr || console->ports_file.empty()) return {};
  const auto bad = [&](const std::string& why) {
    return fail("console " + companion.device.name + ": ports_file " + console->ports_file + ": " +
                why);
  };
  std::ifstream file{console->ports_file};
  if (!file) {
    return errno == ENOENT ? base::Result<void>{} : bad(fail_errno("cannot be read").error.message);
  }
  std::ostringstream text;
  text << file.rdbuf();
  const auto said = json::parse(text.str(), nullptr, false);
  if (!said.is_object() || !said.contains("configured") || !said.contains("ports") ||
      !said["ports"].is_array()) {
    return bad("is no list of ports that this program wrote; remove it");
  }
  if (said["configured"] != json_of(console->ports)) return {};  // the configuration is newer
  auto ports = ports_of(said["ports"]);
  if (!ports) return bad(ports.error().message + "; remove the file");
  console->kept = *std::move(ports);
  return {};
}

base::Result<void> keep_ports(const GuestCompanion& companion, const guest::Device& console) {
  const auto& settings = std::get<guest::ConsoleSettings>(companion.device.settings);
  if (settings.ports_file.empty()) return {};
  auto ports = json::array();
  for (const auto& port : console.ports()) {
    ports.push_back(json_of(port.settings));
    ports.back()["id"] = port.id;
  }
  const json all = {{"configured", json_of(settings.ports)}, {"ports", ports}};
  auto ok = replace_file(settings.ports_file, all.dump(2) + "\n");
  if (ok) return ok;
  return fail("console " + companion.device.name + ": ports_file: " + ok.error().message);
}

}  // namespace millrace::daemon

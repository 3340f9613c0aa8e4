// Reads [[rng]], [[console]], [[balloon]] and [[mem]].
#include <algorithm>

#include "base/units.hpp"
#include "daemon/config_common.hpp"
#include "virtio/wire/console.hpp"

namespace millrace::daemon {

namespace {

// A companion's table: what all of them have, and what `read(Section&, Settings&)` reads.
template <class Settings, class Read>
GuestCompanion read_companion(const Value& table, const std::string& title, Problems& problems,
                              Read read) {
  GuestCompanion companion;
  companion.at = table.at();
  Section section{members(table, title, problems), table.at(), titled(table, title), problems};
  read_name(section, companion.device.name);
  read_server(section, companion.server);
  companion.socket_at = section.at("socket");
  Settings settings;
  read(section, settings);
  section.finish();
  companion.device.settings = std::move(settings);
  return companion;
}

// [[console.port]]: every table of the list, in order.
void read_ports(Section& section, guest::ConsoleSettings& settings, Problems& problems) {
  const auto* ports = section.find("port");
  if (ports == nullptr) return;
  if (ports->array() == nullptr) {
    return section.problem("port", "port is " + std::string{ports->kind()} +
                                       "; begin each port with [[console.port]]");
  }
  for (const auto& each : *ports->array()) {
    const auto title = section.title() + ": [[console.port]]";
    Section part{members(each, title, problems), each.at(), titled(each, title), problems};
    read_console_port(part, settings.ports.emplace_back());
    part.finish();
  }
}

// Names that differ, and no more ports than there are places.
void check_ports(Section& section, const guest::ConsoleSettings& settings) {
  const auto& ports = settings.ports;
  for (auto port = ports.begin(); port != ports.end(); ++port) {
    const bool again = std::any_of(ports.begin(), port, [&port](const auto& other) {
      return !port->name.empty() && other.name == port->name;
    });
    if (again) section.problem("port", "two ports are called " + port->name + "; name them apart");
  }
  const auto plain =
      std::count_if(ports.begin(), ports.end(), [](const auto& port) { return !port.terminal; });
  if (ports.size() > settings.ports_max ||
      plain > static_cast<std::ptrdiff_t>(settings.ports_max) - 1) {
    section.problem("ports_max", "ports_max is " + std::to_string(settings.ports_max) +
                                     ", which is too few; port 0 can only be a terminal");
  }
}

}  // namespace

GuestCompanion read_rng(const Value& table, const std::string& title, Problems& problems) {
  return read_companion<guest::RngSettings>(
      table, title, problems, [](Section& section, guest::RngSettings& settings) {
        section.size("bytes_per_second", settings.bytes_per_second, 1024, 1ull << 30);
      });
}

void read_console_port(Section& section, guest::PortSettings& port) {
  read_name(section, port.name);
  section.require("socket", "\"/run/millrace/NAME.sock\"");
  section.text("socket", port.socket);
  if (section.has("socket") && section.find("socket")->text() != nullptr && port.socket.empty()) {
    section.problem("socket", "socket is empty; give a path");
  }
  check_socket_path(section, "socket", port.socket, false);
  read_permissions(section, port.permissions);
  section.flag("terminal", port.terminal);
}

GuestCompanion read_console(const Value& table, const std::string& title, Problems& problems) {
  return read_companion<guest::ConsoleSettings>(
      table, title, problems, [&problems](Section& section, guest::ConsoleSettings& settings) {
        section.number("ports_max", settings.ports_max, 1, virtio::wire::console_ports_max);
        section.text("ports_file", settings.ports_file);
        if (section.has("ports_file") && !settings.ports_file.starts_with('/')) {
          section.problem("ports_file",
                          "ports_file is no absolute path; give \"/run/millrace/NAME\"");
        }
        read_ports(section, settings, problems);
        check_ports(section, settings);
      });
}

GuestCompanion read_balloon(const Value& table, const std::string& title, Problems& problems) {
  return read_companion<guest::BalloonSettings>(
      table, title, problems, [](Section& section, guest::BalloonSettings& settings) {
        section.size("size", settings.size, 0, guest::balloon_size_max);
        section.flag("reporting", settings.reporting);
        section.flag("deflate_on_oom", settings.deflate_on_oom);
        section.number("stats_s", settings.stats_s, 0, 86'400);
      });
}

void read_mem_size(Section& section, const char* key, std::uint64_t& bytes) {
  section.size(key, bytes, 0, guest::mem_size_max);
  if (bytes % guest::mem_unit == 0) return;
  section.problem(key, std::string{key} + " is " + std::to_string(bytes) +
                           " bytes; give a multiple of " + base::format_bytes(guest::mem_unit));
}

GuestCompanion read_mem(const Value& table, const std::string& title, Problems& problems) {
  return read_companion<guest::MemSettings>(
      table, title, problems, [](Section& section, guest::MemSettings& settings) {
        read_mem_size(section, "requested", settings.requested);
      });
}

std::string title_of(const GuestCompanion& companion) {
  return std::string{"[["} + guest::kind_of(companion.device.settings) + "]] " +
         companion.device.name;
}

std::vector<std::string> port_sockets(const GuestCompanion& companion) {
  std::vector<std::string> sockets;
  const auto* const console = std::get_if<guest::ConsoleSettings>(&companion.device.settings);
  if (console == nullptr) return sockets;
  for (const auto& port : console->ports_now()) sockets.push_back(port.socket);
  return sockets;
}

}  // namespace millrace::daemon

#include "daemon/config_common.hpp"

#include <sys/un.h>

#include <algorithm>
#include <charconv>

namespace millrace::daemon {

namespace {

constexpr std::size_t socket_path_max = sizeof(sockaddr_un::sun_path) - 1;

bool name_is_plain(const std::string& name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), plain);
}

bool is_descriptor(const std::string& socket) {
  const auto digits = std::string_view{socket}.substr(std::min<std::size_t>(3, socket.size()));
  int fd = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), fd);
  return error == std::errc{} && end == digits.data() + digits.size() && fd > 2;
}

}  // namespace

std::string titled(const Value& table, const std::string& title) {
  if (table.table() == nullptr) return title;
  for (const auto& member : *table.table()) {
    if (member.key == "name" && member.value.text() != nullptr &&
        name_is_plain(*member.value.text())) {
      return title + " " + *member.value.text();
    }
  }
  return title;
}

const Value::Table& members(const Value& table, const std::string& title, Problems& problems) {
  static const Value::Table none;
  if (table.table() != nullptr) return *table.table();
  problems.add(table.at(), title + ": this is " + table.kind() + "; give a table of keys");
  return none;
}

void read_name(Section& section, std::string& name) {
  section.require("name", "\"web0\"");
  section.text("name", name);
  if (section.has("name") && section.find("name")->text() != nullptr && !name_is_plain(name)) {
    section.problem("name", "name is \"" + name +
                                "\"; give 1 to 64 letters, digits, dots, dashes or underscores");
  }
}

void check_socket_path(Section& section, const char* key, const std::string& path,
                       bool descriptor_allowed) {
  if (path.empty()) return;
  if (descriptor_allowed && path.starts_with("fd:")) {
    if (!is_descriptor(path)) {
      section.problem(key,
                      std::string{key} + " is \"" + path +
                          "\"; give \"fd:N\" with the number of a passed descriptor, 3 or more");
    }
    return;
  }
  if (path.front() != '/') {
    section.problem(key, std::string{key} + " \"" + path + "\" is relative; give a path from /");
  } else if (path.size() > socket_path_max) {
    section.problem(key, std::string{key} + " has " + std::to_string(path.size()) +
                             " bytes; give a path of at most " + std::to_string(socket_path_max));
  }
}

void read_permissions(Section& section, unsigned& permissions) {
  const auto* value = section.find("permissions");
  if (value == nullptr) return;
  unsigned mode = 0;
  bool good = false;
  if (const auto* text = value->text()) {
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), mode, 8);
    good = error == std::errc{} && end == text->data() + text->size() && mode <= 0777;
  } else if (const auto* integer = value->integer()) {
    good = *integer >= 0 && *integer <= 0777;
    if (good) mode = static_cast<unsigned>(*integer);
  }
  if (!good) {
    return section.problem("permissions",
                           "permissions are not a file mode; give \"0660\" or 0o660");
  }
  permissions = mode;
}

void read_server(Section& section, vhost::ServerConfig& server) {
  section.require("socket", "\"/run/millrace/NAME.sock\"");
  section.text("socket", server.socket);
  if (section.has("socket") && section.find("socket")->text() != nullptr && server.socket.empty()) {
    section.problem("socket", "socket is empty; give a path");
  }
  check_socket_path(section, "socket", server.socket, true);
  section.choice<vhost::SocketMode>(
      "mode", server.mode,
      {{"listen", vhost::SocketMode::listen}, {"connect", vhost::SocketMode::connect}});
  if (server.mode == vhost::SocketMode::connect && server.socket.starts_with("fd:")) {
    section.problem("mode", "a passed descriptor listens; leave mode = \"connect\" out");
  }
  read_permissions(section, server.permissions);
}

void read_reactor_list(Section& section, std::vector<unsigned>& reactors) {
  section.numbers("reactors", reactors, 0, reactors_max - 1);
  if (const auto* value = section.find("reactors");
      value != nullptr && value->array() != nullptr && value->array()->empty()) {
    section.problem("reactors", "reactors is empty; give numbers of reactors, or leave it out");
  }
}

void read_switch_side(Section& section, vswitch::PortConfig& port) {
  section.number("vlan", port.access_vlan, 1, 4094);
  section.numbers("trunk", port.trunk, 1, 4094);
  section.flag("isolated", port.isolated);
  if (section.has("vlan") && section.has("trunk")) {
    section.problem("trunk",
                    "vlan and trunk are both given; give vlan for an access port or "
                    "trunk for a trunk");
  }
  if (const auto* trunk = section.find("trunk");
      trunk != nullptr && trunk->array() != nullptr && trunk->array()->empty()) {
    section.problem("trunk", "trunk is empty; give its VLANs, 1 to 4094, or leave it out");
  }
}

}  // namespace millrace::daemon

// What the readers of [[port]], [[disk]] and [[uplink]] share. Private to daemon/config*.cpp.
#pragma once

#include <string>

#include "daemon/config.hpp"
#include "daemon/section.hpp"

namespace millrace::daemon {

// "[[disk]] web0-root", or "[[disk]]" where there is no name to tell it by.
[[nodiscard]] std::string titled(const Value& table, const std::string& title);
// The table's members; notes a problem and answers an empty table where it is none.
[[nodiscard]] const Value::Table& members(const Value& table, const std::string& title,
                                          Problems& problems);
// name: 1 to 64 of A-Z a-z 0-9 . _ -
void read_name(Section& section, std::string& name);
// socket, mode, permissions.
void read_server(Section& section, vhost::ServerConfig& server);
// A socket path that a sockaddr_un can hold. `key` is where the problem is.
void check_socket_path(Section& section, const char* key, const std::string& path,
                       bool descriptor_allowed);
// permissions: an octal number (0o660) or text ("0660").
void read_permissions(Section& section, unsigned& permissions);
// reactors: the numbers of those that own its queues, in turn.
void read_reactor_list(Section& section, std::vector<unsigned>& reactors);
// bond, members.
void read_bond(Section& section, UplinkEntry& entry);
// Members that are not there, are of two bonds, or cannot be members; standbys that are bonds or
// members.
void check_bonds(const Config& config, Problems& problems);
// vlan, trunk, isolated.
void read_switch_side(Section& section, vswitch::PortConfig& port);

}  // namespace millrace::daemon

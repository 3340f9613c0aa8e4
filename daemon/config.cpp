#include "daemon/config.hpp"

#include <map>

#include "base/mac.hpp"
#include "daemon/config_common.hpp"

namespace millrace::daemon {

namespace {

void read_control(const Value& table, Config& config, Problems& problems) {
  const std::string title = "[control]";
  Section section{members(table, title, problems), table.at(), title, problems};
  section.text("socket", config.control_socket);
  if (config.control_socket.empty()) section.problem("socket", "socket is empty; give a path");
  check_socket_path(section, "socket", config.control_socket, false);
  read_permissions(section, config.control_permissions);
  config.control_at = section.at("socket");
  section.finish();
}

void read_reactors(const Value& table, Config& config, Problems& problems) {
  const std::string title = "[reactors]";
  Section section{members(table, title, problems), table.at(), title, problems};
  section.numbers("cores", config.cores, 0, 1023);
  config.cores_at = section.at("cores");
  if (const auto* cores = section.find("cores"); cores != nullptr && cores->array() != nullptr) {
    if (cores->array()->empty()) {
      section.problem("cores", "cores is empty; give cores, or leave it out to have them chosen");
    } else if (cores->array()->size() > reactors_max) {
      section.problem("cores", "cores holds " + std::to_string(cores->array()->size()) +
                                   " cores; give at most " + std::to_string(reactors_max));
    }
  }
  section.choice<base::IdleMode>(
      "mode", config.mode,
      {{"poll", base::IdleMode::poll}, {"adaptive", base::IdleMode::adaptive}});
  section.number("spin_us", config.spin_us, 0, 1'000'000);
  section.flag("balance", config.balance);
  section.finish();
}

void read_switch(const Value& table, Config& config, Problems& problems) {
  const std::string title = "[switch]";
  Section section{members(table, title, problems), table.at(), title, problems};
  std::uint64_t ageing_s = config.fabric.ageing_ns / 1'000'000'000;
  section.number("ageing_s", ageing_s, 1, 1'000'000);
  config.fabric.ageing_ns = ageing_s * 1'000'000'000;
  section.number("addresses_max", config.fabric.addresses_max, 16, 1u << 20);
  section.finish();
}

void read_memory(const Value& table, Config& config, Problems& problems) {
  const std::string title = "[memory]";
  Section section{members(table, title, problems), table.at(), title, problems};
  section.number("dpdk_mb", config.dpdk_mb, 32, 1u << 20);
  section.flag("dpdk_hugepages", config.dpdk_hugepages);
  section.finish();
}

// [[key]]: every table of the list, in order.
template <class Entry, class Read>
void read_list(Section& root, const char* key, std::vector<Entry>& out, Problems& problems,
               Read read) {
  const auto* value = root.find(key);
  if (value == nullptr) return;
  const std::string title = "[[" + std::string{key} + "]]";
  if (value->array() == nullptr) {
    problems.add(value->at(), title + ": this is " + value->kind() + "; begin it with " + title);
    return;
  }
  for (const auto& table : *value->array()) out.push_back(read(table, title, problems));
}

// Notes a problem for each thing that was claimed before.
class Claims {
 public:
  Claims(std::string what, Problems& problems) : what_{std::move(what)}, problems_{problems} {}
  void claim(const std::string& thing, Position at, const std::string& title) {
    if (thing.empty()) return;
    const auto [earlier, fresh] = owners_.try_emplace(thing, title);
    if (fresh) return;
    problems_.add(at, title + ": " + what_ + " " + thing + " is already used by " +
                          earlier->second + "; give each its own");
  }

 private:
  std::string what_;
  Problems& problems_;
  std::map<std::string, std::string> owners_;
};

void check_duplicates(const Config& config, Problems& problems) {
  Claims names{"name", problems}, sockets{"socket", problems}, macs{"mac", problems},
      devices{"device", problems};
  sockets.claim(config.control_socket, config.control_at, "[control]");
  for (const auto& port : config.ports) {
    const std::string title = "[[port]] " + port.device.name;
    names.claim(port.device.name, port.at, title);
    sockets.claim(port.server.socket, port.socket_at, title);
    if (port.device.mac) macs.claim(base::format_mac(*port.device.mac), port.at, title);
  }
  for (const auto& disk : config.disks) {
    const std::string title = "[[disk]] " + disk.device.name;
    names.claim(disk.device.name, disk.at, title);
    sockets.claim(disk.server.socket, disk.socket_at, title);
  }
  for (const auto& companion : config.companions) {
    const auto title = title_of(companion);
    names.claim(companion.device.name, companion.at, title);
    sockets.claim(companion.server.socket, companion.socket_at, title);
    for (const auto& socket : port_sockets(companion)) sockets.claim(socket, companion.at, title);
  }
  for (const auto& entry : config.uplinks) {
    const std::string title = "[[uplink]] " + entry.uplink.name;
    names.claim(entry.uplink.name, entry.at, title);
    const auto& device = entry.uplink.device;
    if (entry.pf) continue;  // the pool finds one that is free
    devices.claim(device.substr(0, device.find(',')), entry.at, title);
  }
  for (const auto& mirror : config.mirrors) {
    names.claim(mirror.name, mirror.at, "[[mirror]] " + mirror.name);
  }
}

}  // namespace

Config parse_config(std::string_view toml, Problems& problems) {
  Config config;
  const auto root = value_from_toml(toml);
  if (!root) {
    problems.add(root.error().at, "not TOML: " + root.error().line);
    return config;
  }
  Section section{*root->table(), {1, 1}, "the file", problems};
  if (const auto* table = section.find("control")) read_control(*table, config, problems);
  if (const auto* table = section.find("reactors")) read_reactors(*table, config, problems);
  if (const auto* table = section.find("switch")) read_switch(*table, config, problems);
  if (const auto* table = section.find("memory")) read_memory(*table, config, problems);
  read_list(section, "port", config.ports, problems, read_port);
  read_list(section, "disk", config.disks, problems, read_disk);
  read_list(section, "rng", config.companions, problems, read_rng);
  read_list(section, "console", config.companions, problems, read_console);
  read_list(section, "balloon", config.companions, problems, read_balloon);
  read_list(section, "mem", config.companions, problems, read_mem);
  read_list(section, "uplink", config.uplinks, problems, read_uplink);
  read_list(section, "pf", config.pfs, problems, read_pf);
  read_list(section, "mirror", config.mirrors, problems, read_mirror);
  section.finish();
  check_functions(config.pfs, problems);
  check_duplicates(config, problems);
  check_uplink_names(config, problems);
  check_mirrors(config, problems);
  join_direct(config, problems);
  sort_uplinks(config.uplinks);
  return config;
}

}  // namespace millrace::daemon

// Config: everything millraced is told: the file, checked against itself. What it says about the
// machine (files, cores, directories) is checked by system_check.hpp.
// Thread: control.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/reactor.hpp"
#include "blk/config.hpp"
#include "daemon/problems.hpp"
#include "guest/config.hpp"
#include "net/config.hpp"
#include "sriov/wish.hpp"
#include "switch/ethdev_port.hpp"
#include "vhost/server.hpp"

namespace millrace::daemon {

class Section;

inline constexpr unsigned reactors_max = 64;

// A guest's NIC: the device, its switch port and its vhost-user socket.
struct GuestPort {
  net::Config device;
  vhost::ServerConfig server;
  std::vector<unsigned> reactors;  // its queue pairs in turn; empty: where there is room
  std::string follow_uplink;       // whose link is the guest's; empty: that is always up
  std::string direct;              // the uplink that serves it alone; empty: the switch does
  Position at, socket_at, reactors_at;
};

// A guest's disk.
struct GuestDisk {
  blk::Config device;
  vhost::ServerConfig server;
  std::vector<unsigned> reactors;  // its queues in turn; empty: where there is room
  Position at, socket_at, path_at, reactors_at;
};

// A guest's companion: a small device beside its NICs and disks.
struct GuestCompanion {
  struct Device {
    std::string name;
    guest::Settings settings;
  };
  Device device;
  vhost::ServerConfig server;
  Position at, socket_at;
};
// What begins a line about it: "[[rng]] web0-rng".
[[nodiscard]] std::string title_of(const GuestCompanion& companion);
// The sockets of a console's ports, in their order; none of other kinds.
[[nodiscard]] std::vector<std::string> port_sockets(const GuestCompanion& companion);

// A NIC's physical function, whose virtual functions we make, set up and lend.
struct PfEntry {
  sriov::PfWish wish;
  Position at;
  std::vector<Position> function_at;  // of each of wish.functions
};

struct UplinkEntry {
  vswitch::UplinkConfig uplink;
  // Its device is a function that the pool lends, of this physical function.
  std::optional<sriov::PciAddress> pf;
  std::string standby;  // the uplink that carries in its place while it cannot; empty: none
  std::vector<std::string> members;  // of a bond: the uplinks whose devices it has
  Position at;
};

// Copies of what ports and uplinks send and get, for one that watches. Names.
struct MirrorEntry {
  std::string name;
  std::vector<std::string> from;
  std::string to;
  vswitch::MirrorDirection direction = vswitch::MirrorDirection::both;
  Position at;
};

struct Config {
  std::string control_socket = "/run/millrace/control.sock";
  unsigned control_permissions = 0660;
  Position control_at;

  std::vector<unsigned> cores;  // empty: choose (system_check.hpp)
  Position cores_at;
  base::IdleMode mode = base::IdleMode::adaptive;
  std::uint64_t spin_us = 50;
  bool balance = true;  // move queues by their load

  vswitch::FabricConfig fabric;
  unsigned dpdk_mb = 256;  // taken when the first uplink opens
  bool dpdk_hugepages = false;

  std::vector<GuestPort> ports;
  std::vector<GuestDisk> disks;
  std::vector<GuestCompanion> companions;
  std::vector<UplinkEntry> uplinks;
  std::vector<PfEntry> pfs;
  std::vector<MirrorEntry> mirrors;
};

// Reads a whole file's text. Every problem is noted; the Config is usable only where there is none.
[[nodiscard]] Config parse_config(std::string_view toml, Problems& problems);

// One [[port]], [[disk]], [[uplink]] or companion's table, from the file or from a command's
// arguments. `title` begins every line until the name is known: "[[port]]".
[[nodiscard]] GuestPort read_port(const Value& table, const std::string& title, Problems& problems);
[[nodiscard]] GuestDisk read_disk(const Value& table, const std::string& title, Problems& problems);
[[nodiscard]] GuestCompanion read_rng(const Value& table, const std::string& title,
                                      Problems& problems);
[[nodiscard]] GuestCompanion read_console(const Value& table, const std::string& title,
                                          Problems& problems);
[[nodiscard]] GuestCompanion read_balloon(const Value& table, const std::string& title,
                                          Problems& problems);
[[nodiscard]] GuestCompanion read_mem(const Value& table, const std::string& title,
                                      Problems& problems);
// How much memory a guest shall have of a memory device.
void read_mem_size(Section& section, const char* key, std::uint64_t& bytes);
// One [[console.port]] table.
void read_console_port(Section& section, guest::PortSettings& port);
[[nodiscard]] UplinkEntry read_uplink(const Value& table, const std::string& title,
                                      Problems& problems);
[[nodiscard]] PfEntry read_pf(const Value& table, const std::string& title, Problems& problems);
// What a virtual function shall be set to: the keys of [[pf.vf]] but its index.
void read_vf_values(Section& section, sriov::VfValues& values);
[[nodiscard]] MirrorEntry read_mirror(const Value& table, const std::string& title,
                                      Problems& problems);
// Mirrors of what is not there, and those that cannot be there together.
void check_mirrors(const Config& config, Problems& problems);
// Uplinks that are named, as a standby, as a member of a bond or by a port that follows one, and
// are not there, or cannot be what they are named for.
void check_uplink_names(const Config& config, Problems& problems);
// What keeps an uplink from being a member of a bond: a line that goes on from "member wan0";
// empty: nothing.
[[nodiscard]] std::string unfit_as_member(const UplinkEntry& entry);
// What keeps two uplinks from being there together, for vepa's sake; empty: nothing.
[[nodiscard]] std::string vepa_conflict(const UplinkEntry& entry, const UplinkEntry& other);
// Bonds first: a member has to find the one that it is of.
void sort_uplinks(std::vector<UplinkEntry>& uplinks);
// Why the port cannot have that uplink for itself; empty: it can.
[[nodiscard]] std::string direct_conflict(const GuestPort& port, const UplinkEntry& entry);
// Uplinks that ports name as theirs are such; notes those that cannot be.
void join_direct(Config& config, Problems& problems);
// Physical functions and addresses that are there twice.
void check_functions(const std::vector<PfEntry>& entries, Problems& problems);

}  // namespace millrace::daemon

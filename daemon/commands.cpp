#include "daemon/commands.hpp"

#include "base/mac.hpp"
#include "base/numa.hpp"
#include "daemon/metrics.hpp"
#include "daemon/section.hpp"
#include "daemon/status.hpp"
#include "daemon/system_check.hpp"
#include "daemon/version.hpp"

namespace millrace::daemon {

namespace {

using nlohmann::json;
using qmp::CommandHandler, qmp::CommandTable, qmp::refuse, qmp::Reply;
using Query = json (*)(Topology&);

base::Unexpected<qmp::CommandError> refused(const base::Error& error) {
  const auto& line = error.message;
  return refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError");
}

// The answer to a command that has nothing to tell but whether it was done.
Topology::Done answer_with(Reply reply) {
  return [reply = std::move(reply)](const base::Result<void>& result) {
    if (result) return reply(json::object());
    reply(refused(result.error()));
  };
}

// A command's arguments, read like a table of the configuration.
class Arguments {
 public:
  Arguments(const json& arguments, const std::string& command)
      : value_{value_from_json(arguments)}, section_{*value_.table(), {}, command, problems_} {}

  [[nodiscard]] Section& section() { return section_; }
  // The name of something that is there.
  [[nodiscard]] std::string name(const char* key, const char* example) {
    section_.require(key, example);
    return name_if_given(key, example);
  }
  [[nodiscard]] std::string name_if_given(const char* key, const char* example) {
    std::string name;
    section_.text(key, name);
    if (const auto* given = section_.find(key); given != nullptr && given->is_empty_text()) {
      section_.problem(key, std::string{key} + " is empty; give " + key + " = " + example);
    }
    return name;
  }
  // All is read. True: something is wrong, and `reply` has it in one line.
  [[nodiscard]] bool refused(const Reply& reply) {
    section_.finish();
    if (problems_.none()) return false;
    reply(refuse(problems_.joined()));
    return true;
  }

 private:
  Problems problems_;
  Value value_;
  Section section_;
};

// A command that has arguments.
using Act = std::function<void(Topology&, Arguments&, const Reply&)>;

void add_query(CommandTable& table, Topology& topology, const char* name, Query query) {
  table.add(name, [&topology, name, query](const json& arguments, const Reply& reply) {
    if (!arguments.empty()) return reply(refuse(std::string{name} + " takes no arguments"));
    reply(query(topology));
  });
}

// port-add, disk-add: the same keys as the table in a file.
template <class Read>
CommandHandler adder(Topology& topology, const char* kind, Read read) {
  return [&topology, kind, read](const json& arguments, const Reply& reply) {
    Problems problems;
    auto unit = read(value_from_json(arguments), kind, problems);
    if constexpr (requires { unit.server; }) {
      if (problems.none()) {
        const auto title = std::string{kind} + " " + unit.device.name;
        check_system(unit, title, problems);
        // One of a running daemon is its own, or another unit's already.
        if (unit.server.socket.starts_with("fd:")) {
          problems.add({}, title + ": a descriptor is passed at the start only; give a path");
        }
      }
    }
    if (!problems.none()) return reply(refuse(problems.joined()));
    topology.add(std::move(unit), answer_with(reply));
  };
}

Act remover(const std::function<void(Topology&, const std::string&, Topology::Done)>& remove) {
  return [remove](Topology& topology, Arguments& given, const Reply& reply) {
    const auto name = given.name("name", "\"web0\"");
    if (given.refused(reply)) return;
    remove(topology, name, answer_with(reply));
  };
}

// `read` takes the key "size".
Act resizer(const char* example,
            base::Result<std::uint64_t> (Topology::*resize)(const std::string&, std::uint64_t),
            void (*read)(Section&, std::uint64_t&)) {
  return [example, resize, read](Topology& topology, Arguments& given, const Reply& reply) {
    const auto name = given.name("name", example);
    std::uint64_t size = 0;
    read(given.section(), size);
    if (given.refused(reply)) return;
    const auto bytes = (topology.*resize)(name, size);
    if (!bytes) return reply(refused(bytes.error()));
    reply(json{{"name", name}, {"bytes", *bytes}});
  };
}

void read_balloon_size(Section& section, std::uint64_t& size) {
  section.require("size", "\"256MiB\", what the guest shall give up");
  section.size("size", size, 0, guest::balloon_size_max);
}

void read_wanted_mem(Section& section, std::uint64_t& size) {
  section.require("size", "\"512MiB\", what the guest shall have");
  read_mem_size(section, "size", size);
}

// Left out: what the file has now.
void read_disk_size(Section& section, std::uint64_t& size) {
  section.size("size", size, 512, 1ull << 60);
}

// The keys of [[console.port]], and the console.
void add_console_port(Topology& topology, Arguments& given, const Reply& reply) {
  const auto console = given.name("console", "\"web0-console\"");
  guest::PortSettings port;
  read_console_port(given.section(), port);
  if (given.refused(reply)) return;
  answer_with(reply)(topology.add_console_port(console, port));
}

void remove_console_port(Topology& topology, Arguments& given, const Reply& reply) {
  const auto console = given.name("console", "\"web0-console\"");
  const auto name = given.name("name", "\"agent\"");
  if (given.refused(reply)) return;
  answer_with(reply)(topology.remove_console_port(console, name));
}

// "reactor": a number, or null or "auto" for wherever there is room.
void move_queue(Topology& topology, Arguments& given, const Reply& reply) {
  unsigned queue = 0, reactor = 0;
  const auto name = given.name("name", "\"web0\"");
  auto& section = given.section();
  section.require("queue", "0");
  section.number("queue", queue, 0, 65'535);
  section.require("reactor", "1, or \"auto\"");
  const auto* const value = section.find("reactor");
  const auto* const text = value == nullptr ? nullptr : value->text();
  const bool automatic = value != nullptr && (value->null() || (text && *text == "auto"));
  if (text != nullptr && !automatic) {
    section.problem("reactor", "reactor is \"" + *text + "\"; give its number, or \"auto\"");
  } else if (!automatic) {
    section.number("reactor", reactor, 0, reactors_max - 1);
  }
  if (given.refused(reply)) return;
  topology.move_queue(name, queue, automatic ? std::nullopt : std::optional<unsigned>{reactor},
                      answer_with(reply));
}

// Without "name": of all ports.
void flush_port(Topology& topology, Arguments& given, const Reply& reply) {
  const auto name = given.name_if_given("name", "\"web0\", or leave it out");
  if (given.refused(reply)) return;
  topology.flush_addresses(name, answer_with(reply));
}

void query_addresses(Topology& topology, const json& arguments, const Reply& reply) {
  if (!arguments.empty()) return reply(refuse("query-addresses takes no arguments"));
  topology.fabric().list_addresses(
      [&topology, reply](const std::vector<vswitch::Fabric::Address>& addresses) {
        auto out = json::array();
        for (const auto& each : addresses) {
          out.push_back({{"mac", base::format_mac(each.mac)},
                         {"vlan", each.vlan},
                         {"port", topology.name_of(each.port)},
                         {"age_s", static_cast<double>(each.age_ns) / 1e9},
                         {"static", each.is_static}});
        }
        reply(std::move(out));
      });
}

json query_pfs(Topology& topology) {
  return topology.pfs().status();
}

// nullopt: it is not given, or no address.
std::optional<sriov::PciAddress> read_address(Section& section, const char* key) {
  std::string pci;
  section.text(key, pci);
  const auto address = sriov::parse_pci_address(pci);
  if (const auto* value = section.find(key); value != nullptr && value->text() && !address) {
    section.problem(key, std::string{key} + " is \"" + pci + "\"; give one like \"0000:01:00.0\"");
  }
  return address;
}

// Without "pf": of any. "numa_node": where the guest's memory is.
void lease_function(Topology& topology, Arguments& given, const Reply& reply) {
  sriov::VfGuest guest;
  guest.name = given.name("name", "\"web0\", the guest's");
  auto& section = given.section();
  const auto physical = read_address(section, "pf");
  unsigned node = 0;
  section.number("numa_node", node, 0, 1023);
  read_vf_values(section, guest.values);
  if (given.refused(reply)) return;
  const int wanted = section.has("numa_node") ? static_cast<int>(node) : base::any_node;
  auto lent = topology.lend_function(guest, physical, wanted);
  if (!lent) return reply(refused(lent.error()));
  reply(json{{"name", guest.name},
             {"pci", sriov::format(lent->address)},
             {"index", lent->index},
             {"iommu_group", lent->group ? json(*lent->group) : json{}},
             {"numa_node", lent->node == base::any_node ? json{} : json(lent->node)}});
}

// Without "pci": all of them. "all": values that are as they should be are written, too.
void apply_pf(Topology& topology, Arguments& given, const Reply& reply) {
  bool all = false;
  auto& section = given.section();
  const auto address = read_address(section, "pci");
  section.flag("all", all);
  if (given.refused(reply)) return;
  auto done = topology.pfs().apply(address, all);
  if (!done) return reply(refused(done.error()));
  reply(*std::move(done));
}

json query_version(Topology&) {
  return version_object();
}
json query_metrics(Topology& topology) {
  return metrics_of(everything_of(topology));
}

}  // namespace

qmp::CommandTable make_commands(Topology& topology, std::function<void()> quit) {
  CommandTable table;
  add_query(table, topology, "query-version", query_version);
  add_query(table, topology, "query-status", status_of);
  add_query(table, topology, "query-ports", ports_of);
  add_query(table, topology, "query-disks", disks_of);
  add_query(table, topology, "query-companions", companions_of);
  add_query(table, topology, "query-uplinks", uplinks_of);
  add_query(table, topology, "query-mirrors", mirrors_of);
  add_query(table, topology, "query-pfs", query_pfs);
  add_query(table, topology, "query-sessions", sessions_of);
  add_query(table, topology, "query-reactors", reactors_of);
  add_query(table, topology, "query-counters", counters_of);
  add_query(table, topology, "query-all", everything_of);
  add_query(table, topology, "query-metrics", query_metrics);
  table.add("query-addresses", [&topology](const json& arguments, const Reply& reply) {
    query_addresses(topology, arguments, reply);
  });
  const auto add = [&](const std::string& name, Act act) {
    table.add(name,
              [&topology, name, act = std::move(act)](const json& arguments, const Reply& reply) {
                Arguments given{arguments, name};
                act(topology, given, reply);
              });
  };
  table.add("port-add", adder(topology, "port", read_port));
  table.add("disk-add", adder(topology, "disk", read_disk));
  table.add("rng-add", adder(topology, "rng", read_rng));
  table.add("console-add", adder(topology, "console", read_console));
  table.add("balloon-add", adder(topology, "balloon", read_balloon));
  table.add("mem-add", adder(topology, "mem", read_mem));
  table.add("uplink-add", adder(topology, "uplink", read_uplink));
  table.add("mirror-add", adder(topology, "mirror", read_mirror));
  add("console-port-add", add_console_port);
  add("port-remove", remover(&Topology::remove_port));
  add("disk-remove", remover(&Topology::remove_disk));
  add("uplink-remove", remover(&Topology::remove_uplink));
  add("mirror-remove", remover(&Topology::remove_mirror));
  for (const char* kind : {"rng", "console", "balloon", "mem"}) {
    add(std::string{kind} + "-remove",
        remover([kind](Topology& each, const std::string& name, Topology::Done done) {
          each.remove_companion(kind, name, std::move(done));
        }));
  }
  add("console-port-remove", remove_console_port);
  add("disk-resize", resizer("\"web0-root\"", &Topology::resize_disk, read_disk_size));
  add("balloon-resize", resizer("\"web0-balloon\"", &Topology::resize_balloon, read_balloon_size));
  add("mem-resize", resizer("\"web0-mem\"", &Topology::resize_mem, read_wanted_mem));
  add("move-queue", move_queue);
  add("port-flush", flush_port);
  add("pf-apply", apply_pf);
  add("function-lease", lease_function);
  add("function-return", remover(&Topology::return_function));
  table.add("quit", [quit = std::move(quit)](const json& arguments, const Reply& reply) {
    if (!arguments.empty()) return reply(refuse("quit takes no arguments"));
    reply(json::object());
    quit();
  });
  return table;
}

}  // namespace millrace::daemon

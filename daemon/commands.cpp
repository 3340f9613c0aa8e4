#include "daemon/commands.hpp"

#include "base/mac.hpp"
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

// The answer to a command that has nothing to tell but whether it was done.
Topology::Done answer_with(Reply reply) {
  return [reply = std::move(reply)](const base::Result<void>& result) {
    if (result) return reply(json::object());
    const auto& line = result.error().message;
    reply(refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError"));
  };
}

// A command's arguments, read like a table of the configuration.
class Arguments {
 public:
  Arguments(const json& arguments, const char* command)
      : value_{value_from_json(arguments)}, section_{*value_.table(), {}, command, problems_} {}

  [[nodiscard]] Section& section() { return section_; }
  // Every problem in one line; empty: none.
  [[nodiscard]] std::string finish() {
    section_.finish();
    return problems_.joined();
  }

 private:
  Problems problems_;
  Value value_;
  Section section_;
};

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
        check_system(unit, std::string{kind} + " " + unit.device.name, problems);
      }
    }
    if (!problems.none()) return reply(refuse(problems.joined()));
    topology.add(std::move(unit), answer_with(reply));
  };
}

using Remove = void (Topology::*)(const std::string&, Topology::Done);

CommandHandler remover(Topology& topology, const char* command, Remove remove) {
  return [&topology, command, remove](const json& arguments, const Reply& reply) {
    std::string name;
    Arguments given{arguments, command};
    given.section().require("name", "\"web0\"");
    given.section().text("name", name);
    if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
    (topology.*remove)(name, answer_with(reply));
  };
}

CommandHandler companion_remover(Topology& topology, const char* kind) {
  return [&topology, kind](const json& arguments, const Reply& reply) {
    std::string name;
    Arguments given{arguments, kind};
    given.section().require("name", "\"web0-rng\"");
    given.section().text("name", name);
    if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
    topology.remove_companion(kind, name, answer_with(reply));
  };
}

void resize_balloon(Topology& topology, const json& arguments, const Reply& reply) {
  std::string name;
  std::uint64_t size = 0;
  Arguments given{arguments, "balloon-resize"};
  given.section().require("name", "\"web0-balloon\"");
  given.section().text("name", name);
  given.section().require("size", "\"256MiB\", what the guest shall give up");
  given.section().size("size", size, 0, guest::balloon_size_max);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  const auto bytes = topology.resize_balloon(name, size);
  if (bytes) return reply(json{{"name", name}, {"bytes", *bytes}});
  const auto& line = bytes.error().message;
  reply(refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError"));
}

void resize_mem(Topology& topology, const json& arguments, const Reply& reply) {
  std::string name;
  std::uint64_t size = 0;
  Arguments given{arguments, "mem-resize"};
  given.section().require("name", "\"web0-mem\"");
  given.section().text("name", name);
  given.section().require("size", "\"512MiB\", what the guest shall have");
  read_mem_size(given.section(), "size", size);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  const auto bytes = topology.resize_mem(name, size);
  if (bytes) return reply(json{{"name", name}, {"bytes", *bytes}});
  const auto& line = bytes.error().message;
  reply(refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError"));
}

// The keys of [[console.port]], and the console.
void add_console_port(Topology& topology, const json& arguments, const Reply& reply) {
  std::string console;
  guest::PortSettings port;
  Arguments given{arguments, "console-port-add"};
  given.section().require("console", "\"web0-console\"");
  given.section().text("console", console);
  read_console_port(given.section(), port);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  answer_with(reply)(topology.add_console_port(console, port));
}

void remove_console_port(Topology& topology, const json& arguments, const Reply& reply) {
  std::string console, name;
  Arguments given{arguments, "console-port-remove"};
  given.section().require("console", "\"web0-console\"");
  given.section().text("console", console);
  given.section().require("name", "\"agent\"");
  given.section().text("name", name);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  answer_with(reply)(topology.remove_console_port(console, name));
}

void resize_disk(Topology& topology, const json& arguments, const Reply& reply) {
  std::string name;
  std::uint64_t size = 0;
  Arguments given{arguments, "disk-resize"};
  given.section().require("name", "\"web0-root\"");
  given.section().text("name", name);
  given.section().size("size", size, 512, 1ull << 60);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  const auto bytes = topology.resize_disk(name, size);
  if (bytes) return reply(json{{"name", name}, {"bytes", *bytes}});
  const auto& line = bytes.error().message;
  reply(refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError"));
}

// "reactor": a number, or null or "auto" for wherever there is room.
void move_queue(Topology& topology, const json& arguments, const Reply& reply) {
  std::string name;
  unsigned queue = 0, reactor = 0;
  json given_arguments = arguments;
  const bool null = arguments.contains("reactor") && arguments["reactor"].is_null();
  if (null) given_arguments["reactor"] = "auto";
  Arguments given{given_arguments, "move-queue"};
  auto& section = given.section();
  section.require("name", "\"web0\"");
  section.text("name", name);
  section.require("queue", "0");
  section.number("queue", queue, 0, 65'535);
  section.require("reactor", "1, or \"auto\"");
  const auto* value = section.find("reactor");
  const bool automatic = value != nullptr && value->text() != nullptr && *value->text() == "auto";
  if (!automatic) section.number("reactor", reactor, 0, reactors_max - 1);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  topology.move_queue(name, queue, automatic ? std::nullopt : std::optional<unsigned>{reactor},
                      answer_with(reply));
}

void flush_port(Topology& topology, const json& arguments, const Reply& reply) {
  std::string name;
  Arguments given{arguments, "port-flush"};
  given.section().text("name", name);
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
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

// Without "pci": all of them. "all": values that are as they should be are written, too.
void apply_pf(Topology& topology, const json& arguments, const Reply& reply) {
  std::string pci;
  bool all = false;
  Arguments given{arguments, "pf-apply"};
  given.section().text("pci", pci);
  given.section().flag("all", all);
  const auto address = sriov::parse_pci_address(pci);
  if (!pci.empty() && !address) {
    given.section().problem("pci", "pci is \"" + pci + "\"; give one like \"0000:01:00.0\"");
  }
  if (const auto line = given.finish(); !line.empty()) return reply(refuse(line));
  auto done = topology.pfs().apply(address, all);
  if (done) return reply(*std::move(done));
  const auto& line = done.error().message;
  reply(refuse(line, line.starts_with("there is no") ? "DeviceNotFound" : "GenericError"));
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
  add_query(table, topology, "query-pfs", query_pfs);
  add_query(table, topology, "query-sessions", sessions_of);
  add_query(table, topology, "query-reactors", reactors_of);
  add_query(table, topology, "query-counters", counters_of);
  add_query(table, topology, "query-all", everything_of);
  add_query(table, topology, "query-metrics", query_metrics);
  table.add("query-addresses", [&topology](const json& arguments, const Reply& reply) {
    query_addresses(topology, arguments, reply);
  });
  table.add("port-add", adder(topology, "port", read_port));
  table.add("disk-add", adder(topology, "disk", read_disk));
  table.add("rng-add", adder(topology, "rng", read_rng));
  table.add("console-add", adder(topology, "console", read_console));
  table.add("balloon-add", adder(topology, "balloon", read_balloon));
  table.add("balloon-resize", [&topology](const json& arguments, const Reply& reply) {
    resize_balloon(topology, arguments, reply);
  });
  table.add("mem-add", adder(topology, "mem", read_mem));
  table.add("mem-resize", [&topology](const json& arguments, const Reply& reply) {
    resize_mem(topology, arguments, reply);
  });
  table.add("console-port-add", [&topology](const json& arguments, const Reply& reply) {
    add_console_port(topology, arguments, reply);
  });
  table.add("uplink-add", adder(topology, "uplink", read_uplink));
  table.add("port-remove", remover(topology, "port-remove", &Topology::remove_port));
  table.add("disk-remove", remover(topology, "disk-remove", &Topology::remove_disk));
  table.add("rng-remove", companion_remover(topology, "rng"));
  table.add("console-remove", companion_remover(topology, "console"));
  table.add("balloon-remove", companion_remover(topology, "balloon"));
  table.add("mem-remove", companion_remover(topology, "mem"));
  table.add("console-port-remove", [&topology](const json& arguments, const Reply& reply) {
    remove_console_port(topology, arguments, reply);
  });
  table.add("uplink-remove", remover(topology, "uplink-remove", &Topology::remove_uplink));
  table.add("disk-resize", [&topology](const json& arguments, const Reply& reply) {
    resize_disk(topology, arguments, reply);
  });
  table.add("move-queue", [&topology](const json& arguments, const Reply& reply) {
    move_queue(topology, arguments, reply);
  });
  table.add("port-flush", [&topology](const json& arguments, const Reply& reply) {
    flush_port(topology, arguments, reply);
  });
  table.add("pf-apply", [&topology](const json& arguments, const Reply& reply) {
    apply_pf(topology, arguments, reply);
  });
  table.add("quit", [quit = std::move(quit)](const json& arguments, const Reply& reply) {
    if (!arguments.empty()) return reply(refuse("quit takes no arguments"));
    reply(json::object());
    quit();
  });
  return table;
}

}  // namespace millrace::daemon

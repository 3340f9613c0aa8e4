// millctl: asks a running millraced over its control socket, and shows the answer.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "daemon/ctl/arguments.hpp"
#include "daemon/ctl/check_host.hpp"
#include "daemon/ctl/commands.hpp"
#include "daemon/ctl/pf.hpp"
#include "daemon/ctl/vm_words.hpp"
#include "daemon/version.hpp"

namespace millrace::ctl {

namespace {

// What the command line asked for; `run` is set by the sub-command that was given.
struct Request {
  Settings settings;
  StatusOptions status;
  VmRequest vm;
  PfRequest pf;
  std::string kind, name, size, text, console, reactor;
  unsigned queue = 0;
  std::vector<std::string> words;
  unsigned count = 0;
  std::function<int()> run;
};

int add_unit(const Request& request) {
  const auto arguments = parse_arguments(request.words, request.kind);
  if (!arguments) {
    std::fprintf(stderr, "millctl: %s\n", arguments.error().message.c_str());
    return exit_usage;
  }
  return execute(request.settings, request.kind + "-add", *arguments);
}

int move_queue(const Request& request) {
  const auto number = nlohmann::json::parse(request.reactor, nullptr, false);
  return execute(request.settings, "move-queue",
                 {{"name", request.name},
                  {"queue", request.queue},
                  {"reactor", number.is_number() ? number : nlohmann::json(request.reactor)}});
}

void add_queries(CLI::App& app, Request& request) {
  auto* status = app.add_subcommand("status", "Who is connected, rates, latencies, drops, load");
  status->add_flag("--watch,-w", request.status.watch, "Redraw until q or Ctrl-C; s sorts");
  status->add_option("--interval", request.status.interval_s, "Seconds between two samples")
      ->check(CLI::Range(0.05, 3600.0));
  const std::map<std::string, SortKey> keys{{"rate", SortKey::rate},
                                            {"name", SortKey::name},
                                            {"drops", SortKey::drops},
                                            {"latency", SortKey::latency}};
  status->add_option("--sort", request.status.sort, "rate, name, drops or latency")
      ->transform(CLI::CheckedTransformer(keys));
  status->callback([&request] {
    request.run = [&request] { return show_status(request.settings, request.status); };
  });
  for (const char* kind : {"ports", "disks", "companions", "uplinks", "mirrors", "reactors",
                           "sessions", "counters", "addresses"}) {
    app.add_subcommand(kind, std::string{"Lists the "} + kind)->callback([&request, kind] {
      request.run = [&request, kind] { return show_list(request.settings, kind); };
    });
  }
  app.add_subcommand("metrics", "Prometheus text")->callback([&request] {
    request.run = [&request] { return show_metrics(request.settings); };
  });
  auto* events = app.add_subcommand("events", "Prints events as they come");
  events->add_option("--count", request.count, "End after so many");
  events->callback([&request] {
    request.run = [&request] { return show_events(request.settings, request.count); };
  });
}

// WORD UNIT SIZE, for which the daemon has KIND-resize. Answers the size.
CLI::Option* add_resize(CLI::App& app, Request& request, const char* word, const char* kind,
                        const char* about, const char* sizes) {
  auto* const command = app.add_subcommand(word, about);
  command->add_option(kind, request.name)->required();
  auto* const size = command->add_option("size", request.size, sizes);
  command->callback([&request, kind, size] {
    request.run = [&request, kind, size] {
      nlohmann::json arguments{{"name", request.name}};
      if (size->count() > 0) arguments["size"] = request.size;
      return execute(request.settings, std::string{kind} + "-resize", arguments);
    };
  });
  return size;
}

void add_changes(CLI::App& app, Request& request) {
  const auto kinds = CLI::IsMember(
      {"port", "disk", "rng", "console", "console-port", "balloon", "mem", "uplink", "mirror"});
  auto* add = app.add_subcommand("add", "Adds a unit: add port name=web0 ...");
  add->add_option("kind", request.kind,
                  "port, disk, rng, console, console-port, balloon, mem, uplink or mirror")
      ->required()
      ->check(kinds);
  add->add_option("keys", request.words, "key=value, the keys of the configuration file")
      ->required();
  add->callback([&request] { request.run = [&request] { return add_unit(request); }; });

  auto* remove = app.add_subcommand("remove", "Removes a unit");
  remove
      ->add_option("kind", request.kind,
                   "port, disk, rng, console, console-port, balloon, mem, uplink or mirror")
      ->required()
      ->check(kinds);
  remove->add_option("name", request.name)->required();
  remove->add_option("--console", request.console, "console-port: of this console");
  remove->callback([&request] {
    request.run = [&request] {
      nlohmann::json arguments{{"name", request.name}};
      if (!request.console.empty()) arguments["console"] = request.console;
      return execute(request.settings, request.kind + "-remove", arguments);
    };
  });

  add_resize(app, request, "resize", "disk", "Tells a guest that its disk has a new size",
             "20GiB; left out: what the file has now");
  add_resize(app, request, "balloon", "balloon", "Sets how much memory a guest gives up",
             "256MiB; 0: it gets all of it back")
      ->required();
  add_resize(app, request, "mem", "mem", "Sets how much memory a guest has of a memory device",
             "512MiB; 0: it gives all of it back")
      ->required();
  auto* move = app.add_subcommand(
      "move", "Moves a queue to a reactor and keeps it there; auto: where there is room");
  move->add_option("unit", request.name, "A port, disk or companion")->required();
  move->add_option("queue", request.queue, "Its index, as the lists have it")->required();
  move->add_option("reactor", request.reactor, "Its index, or auto")->required();
  move->callback([&request] { request.run = [&request] { return move_queue(request); }; });

  auto* flush = app.add_subcommand("flush", "Forgets learned addresses, of one port or of all");
  auto* const port = flush->add_option("port", request.name);
  flush->callback([&request, port] {
    request.run = [&request, port] {
      auto arguments = nlohmann::json::object();
      if (port->count() > 0) arguments["name"] = request.name;  // an empty one is none, not all
      return execute(request.settings, "port-flush", arguments);
    };
  });
}

void add_others(CLI::App& app, Request& request) {
  app.add_subcommand("check-host",
                     "Says what this host lacks for PCI functions in user space; asks no daemon")
      ->callback([&request] {
        request.run = [&request] { return show_host(request.settings.json, "/"); };
      });
  app.add_subcommand("quit", "Drains and ends the daemon")->callback([&request] {
    request.run = [&request] {
      return execute(request.settings, "quit", nlohmann::json::object());
    };
  });
  auto* raw = app.add_subcommand("raw", "Sends one request as it is: raw '{\"execute\": ...}'");
  raw->add_option("request", request.text)->required();
  raw->callback([&request] {
    request.run = [&request] { return send_raw(request.settings, request.text); };
  });
}

int run(int argc, char** argv) {
  Request request;
  CLI::App app{
      "millctl looks at a running millraced, or at a guest of millrace-vmm, and changes it.",
      "millctl"};
  app.set_version_flag("--version", std::string{"millctl "} + daemon::version);
  app.add_option("--socket", request.settings.socket, "The control socket")->capture_default_str();
  app.add_flag("--json", request.settings.json, "Answers as JSON");
  app.require_subcommand(1);
  app.fallthrough();
  app.footer("Exit status: 0 done, 1 refused, 2 wrong command line, 3 nobody is there.");
  add_queries(app, request);
  add_changes(app, request);
  add_others(app, request);
  add_vm(app, request.vm, [&request](std::function<int(const Settings&)> run) {
    request.run = [&request, run = std::move(run)] { return run(request.settings); };
  });
  add_pf(app, request.pf, [&request](std::function<int(const Settings&)> run) {
    request.run = [&request, run = std::move(run)] { return run(request.settings); };
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_ok : exit_usage;
  }
  try {
    return request.run();
  } catch (const nlohmann::json::exception&) {
    std::fputs(
        "millctl: the control socket gives answers that no program of this version gives; "
        "is it the right one?\n",
        stderr);
    return exit_unreachable;
  }
}

}  // namespace

}  // namespace millrace::ctl

int main(int argc, char** argv) {
  return millrace::ctl::run(argc, argv);
}

#include "daemon/ctl/vm_words.hpp"

#include <cstdio>
#include <utility>

#include "daemon/ctl/arguments.hpp"
#include "daemon/ctl/vm.hpp"

namespace millrace::ctl {

namespace {

using Run = std::function<int(const Settings&)>;

class Words {
 public:
  Words(CLI::App& vm, VmRequest& request, std::function<void(Run)> choose)
      : vm_{vm}, request_{request}, choose_{std::move(choose)} {}

  // A word, and what it does with the guest's socket.
  CLI::App* add(const char* name, const char* help, const Run& run) {
    auto* const word = vm_.add_subcommand(name, help);
    word->callback([choose = choose_, &request = request_, run] {
      choose([&request, run](const Settings& given) {
        auto settings = given;
        settings.socket = request.socket;
        settings.who = "millrace-vmm";
        return run(settings);
      });
    });
    return word;
  }
  // One that is a command without arguments.
  void add_command(const char* name, const char* command, const char* help) {
    add(name, help, [command](const Settings& settings) {
      return execute(settings, command, nlohmann::json::object());
    });
  }

 private:
  CLI::App& vm_;
  VmRequest& request_;
  const std::function<void(Run)> choose_;
};

int add_device(const Settings& settings, const VmRequest& request) {
  auto arguments = parse_arguments(request.words);
  if (!arguments) {
    std::fprintf(stderr, "millctl: %s\n", arguments.error().message.c_str());
    return exit_usage;
  }
  (*arguments)["driver"] = request.kind;
  return execute(settings, "device_add", *arguments);
}

void add_device_words(Words& words, VmRequest& request) {
  words.add("devices", "Lists its devices, and whether a back-end serves them", show_devices);
  auto* const add =
      words.add("add", "Plugs a device in: add disk id=data socket=/run/data.sock",
                [&request](const Settings& settings) { return add_device(settings, request); });
  add->add_option("kind", request.kind,
                  "net, disk, rng, virtio-console, balloon; cpu; dimm, which is memory")
      ->required()
      ->check(CLI::IsMember({"net", "disk", "rng", "virtio-console", "balloon", "cpu", "dimm"}));
  add->add_option("keys", request.words,
                  "id=, socket=, and where wanted mac=, queues=, queue-size=; for cpu count=, for "
                  "dimm size=")
      ->required();
  auto* const remove = words.add("del", "Asks the guest to let go of a device",
                                 [&request](const Settings& settings) {
                                   const auto wait_s = request.wait ? request.timeout_s : 0;
                                   return remove_device(settings, request.id, wait_s);
                                 });
  remove->add_option("id", request.id)->required();
  remove->add_flag("--wait", request.wait, "Until it is gone");
  remove->add_option("--timeout", request.timeout_s, "Seconds to wait at most (default 60)")
      ->check(CLI::Range(1, 86400));
}

}  // namespace

void add_vm(CLI::App& app, VmRequest& request, std::function<void(Run)> choose) {
  auto* const vm = app.add_subcommand("vm", "A guest of millrace-vmm: vm SOCKET status");
  vm->add_option("socket", request.socket, "What millrace-vmm was given as --control")->required();
  vm->require_subcommand(1);
  Words words{*vm, request, std::move(choose)};
  words.add("status", "Whether it runs, and if not, why", show_guest);
  words.add_command("stop", "stop", "Its vCPUs and clocks stand still; its queues are served on");
  words.add_command("cont", "cont", "It goes on");
  words.add_command("powerdown", "system_powerdown", "Presses its power button");
  words.add_command("reset", "system_reset", "Starts it again, at once");
  words.add_command("quit", "quit", "Ends it and its millrace-vmm, at once");
  add_device_words(words, request);
  words
      .add("dump", "Writes its memory and registers to a core file, for gdb and crash",
           [&request](const Settings& settings) { return dump_guest(settings, request.path); })
      ->add_option("file", request.path, "Replaced, if it is there")
      ->required();
  words
      .add("events", "Prints events as they come",
           [&request](const Settings& settings) { return show_events(settings, request.count); })
      ->add_option("--count", request.count, "End after so many");
}

}  // namespace millrace::ctl

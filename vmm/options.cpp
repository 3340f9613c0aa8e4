#include "vmm/options.hpp"

#include <CLI/CLI.hpp>
#include <bit>
#include <charconv>

#include "base/units.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

const char* name_of(DeviceOption::Kind kind) {
  return kind == DeviceOption::Kind::net ? "--net" : "--disk";
}

Result<unsigned> parse_number(const std::string& key, const std::string& text, unsigned most) {
  unsigned number = 0;
  const auto* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stopped != end || number == 0 || number > most) {
    return fail(key + "=" + text + ": give a number from 1 to " + std::to_string(most));
  }
  return number;
}

Result<void> set_key(DeviceOption& device, const std::string& key, const std::string& value) {
  constexpr unsigned queues_max = 256, queue_size_max = 32768;
  if (key == "socket" && !value.empty()) {
    device.socket = value;
  } else if (key == "mac" && device.kind == DeviceOption::Kind::net) {
    device.mac = value;
  } else if (key == "queues") {
    auto number = parse_number(key, value, queues_max);
    if (!number) return base::Unexpected{number.error()};
    device.queues = *number;
  } else if (key == "queue-size") {
    auto number = parse_number(key, value, queue_size_max);
    if (!number) return base::Unexpected{number.error()};
    if (!std::has_single_bit(*number)) return fail(key + "=" + value + ": give a power of two");
    device.queue_size = *number;
  } else if (key == "wait" && (value == "yes" || value == "no")) {
    device.wait = value == "yes";
  } else {
    return fail("cannot use " + key + "=" + value);
  }
  return {};
}

// "512M" and the like, in whole megabytes of 2 MiB pages; checked further where it is used.
std::string to_bytes(const std::string& text, std::uint64_t& bytes) {
  const auto size = base::parse_size(text);
  if (!size) return size.error().message;
  bytes = *size;
  return {};
}

struct Texts {
  std::string memory = "256M", pages, reboot = "exit", console = "-", second_console = "none";
  std::vector<std::string> nets, disks;
  bool ksm = false;
};

void declare(CLI::App& app, Options& options, Texts& texts) {
  app.add_option("--kernel", options.boot.kernel, "Linux bzImage (vmlinuz) or ELF kernel")
      ->required();
  app.add_option("--initrd", options.boot.initrd, "The kernel's first file system");
  app.add_option("--cmdline", options.boot.command_line, "The kernel's command line");
  app.add_option("--memory", texts.memory, "The guest's memory, e.g. 512M or 4G (default 256M)");
  app.add_option("--pages", texts.pages,
                 "Take the memory from the host's pool of pages of 2M or 1G");
  app.add_option("--numa-node", options.ram.numa_node, "Bind the memory to this node of the host");
  app.add_flag("--prefault", options.ram.prefault, "Touch all of the memory at the start");
  app.add_flag("--ksm", texts.ksm, "Refused: says why");
  app.add_option("--cpus", options.cpus, "vCPUs, 1 to " + std::to_string(cpus_max));
  app.add_option("--net", texts.nets,
                 "A network device: socket=PATH[,mac=..][,queues=N][,queue-size=N][,wait=no]")
      ->allow_extra_args(false);
  app.add_option("--disk", texts.disks, "A disk: socket=PATH[,queues=N][,queue-size=N][,wait=no]")
      ->allow_extra_args(false);
  app.add_option("--console", texts.console,
                 "The first serial port: - (default: this terminal; Ctrl-] quits), socket:PATH, a "
                 "file, none");
  app.add_option("--second-console", texts.second_console, "The second serial port, likewise");
  app.add_option("--reboot", texts.reboot, "What a guest's reset does: exit (status 3) or restart")
      ->check(CLI::IsMember({"exit", "restart"}));
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error"}));
}

// What CLI11 cannot check by itself. An empty line: all is well.
std::string finish(const CLI::App& app, Options& options, const Texts& texts) {
  if (auto wrong = to_bytes(texts.memory, options.ram.bytes); !wrong.empty()) {
    return "--memory: " + wrong;
  }
  if (!texts.pages.empty()) {
    const auto wrong = to_bytes(texts.pages, options.ram.page_size);
    if (!wrong.empty()) return "--pages: " + wrong;
  }
  if (texts.ksm) {
    return "--ksm: the kernel never merges pages of shared memory, and vhost-user needs the "
           "guest's "
           "memory to be shared; leave it out";
  }
  options.restart = texts.reboot == "restart";
  options.consoles = {texts.console, texts.second_console};
  if (texts.console == "-" && texts.second_console == "-") {
    return "--second-console: the terminal is the first console's";
  }
  std::size_t nets = 0, disks = 0;
  for (const auto* const option : app.parse_order()) {
    const bool net = option->check_name("--net");
    if (!net && !option->check_name("--disk")) continue;
    const auto kind = net ? DeviceOption::Kind::net : DeviceOption::Kind::disk;
    const auto& text = net ? texts.nets.at(nets++) : texts.disks.at(disks++);
    auto device = parse_device(kind, text);
    if (!device) return device.error().message;
    options.devices.push_back(*std::move(device));
  }
  if (options.devices.size() >= PciRoot::slots) return "at most 31 devices fit on the PCI bus";
  return {};
}

}  // namespace

Result<DeviceOption> parse_device(DeviceOption::Kind kind, const std::string& text) {
  DeviceOption device;
  device.kind = kind;
  const auto wrong = [&](const std::string& why) {
    return fail(std::string{name_of(kind)} + " " + text + ": " + why);
  };
  std::size_t at = 0;
  while (at < text.size()) {
    const auto end = std::min(text.find(',', at), text.size());
    const auto part = text.substr(at, end - at);
    at = end + 1;
    const auto equals = part.find('=');
    if (equals == std::string::npos) return wrong("'" + part + "' is no KEY=VALUE");
    if (auto ok = set_key(device, part.substr(0, equals), part.substr(equals + 1)); !ok) {
      return wrong(ok.error().message);
    }
  }
  if (device.socket.empty()) return wrong("give the back-end's socket: socket=PATH");
  return device;
}

std::optional<Options> parse_options(int argc, const char* const* argv, int& status) {
  Options options;
  Texts texts;
  CLI::App app{"millrace-vmm runs one guest whose devices vhost-user back-ends serve.",
               "millrace-vmm"};
  app.set_version_flag("--version", std::string{"millrace-vmm "} + MILLRACE_VERSION);
  declare(app, options, texts);
  app.footer(
      "Exit status: 0 the guest powered off, 1 something failed, 2 wrong usage, 3 the guest "
      "reset, 4 its kernel panicked.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    status = app.exit(error) == 0 ? exit_power_off : exit_usage;
    return std::nullopt;
  }
  const auto wrong = finish(app, options, texts);
  if (wrong.empty()) return options;
  std::fprintf(stderr, "millrace-vmm: %s\n", wrong.c_str());
  status = exit_usage;
  return std::nullopt;
}

}  // namespace millrace::vmm

#include "vmm/options.hpp"

#include <CLI/CLI.hpp>
#include <array>
#include <bit>
#include <charconv>

#include "base/units.hpp"
#include "vmm/platform.hpp"

namespace millrace::vmm {

using base::fail;
using base::Result;

namespace {

using Kind = DeviceOption::Kind;

// The options that add a device, whose order on the command line is the guest's.
struct DeviceKindOption {
  Kind kind;
  const char* name;
  const char* help;
};
constexpr std::array device_kinds{
    DeviceKindOption{Kind::net, "--net",
                     "A network device: socket=PATH[,mac=..][,queues=N][,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::disk, "--disk",
                     "A disk: socket=PATH[,queues=N][,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::rng, "--rng", "An entropy device: socket=PATH[,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::virtio_console, "--virtio-console",
                     "A virtio console with ports: socket=PATH[,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::balloon, "--balloon",
                     "A memory balloon: socket=PATH[,queue-size=N][,wait=no]"},
};
// The driver fills the queues of a companion with buffers of whole pages.
constexpr unsigned companion_queue_size = 64;

bool is_companion(Kind kind) {
  return kind != Kind::net && kind != Kind::disk;
}

const char* name_of(Kind kind) {
  for (const auto& each : device_kinds) {
    if (each.kind == kind) return each.name;
  }
  return "";
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
  } else if (key == "queues" && !is_companion(device.kind)) {
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
  std::array<std::vector<std::string>, device_kinds.size()> devices;  // by kind
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
  for (std::size_t i = 0; i < device_kinds.size(); ++i) {
    app.add_option(device_kinds[i].name, texts.devices[i], device_kinds[i].help)
        ->allow_extra_args(false);
  }
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
  std::array<std::size_t, device_kinds.size()> seen{};
  for (const auto* const option : app.parse_order()) {
    for (std::size_t i = 0; i < device_kinds.size(); ++i) {
      if (!option->check_name(device_kinds[i].name)) continue;
      auto device = parse_device(device_kinds[i].kind, texts.devices[i].at(seen[i]++));
      if (!device) return device.error().message;
      options.devices.push_back(*std::move(device));
    }
  }
  if (options.devices.size() >= PciRoot::slots) return "at most 31 devices fit on the PCI bus";
  return {};
}

}  // namespace

Result<DeviceOption> parse_device(DeviceOption::Kind kind, const std::string& text) {
  DeviceOption device;
  device.kind = kind;
  if (is_companion(kind)) device.queue_size = companion_queue_size;
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

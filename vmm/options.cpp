#include "vmm/options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <map>
#include <set>

#include "base/check.hpp"
#include "base/units.hpp"
#include "vfio/host_function.hpp"
#include "vmm/option_file.hpp"
#include "vmm/platform.hpp"
#include "vmm/profile.hpp"
#include "vmm/size_options.hpp"

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
                     "A network device: socket=PATH[,id=NAME][,mac=..][,queues=N][,queue-size=N]"
                     "[,wait=no][,removable=yes]"},
    DeviceKindOption{Kind::disk, "--disk",
                     "A disk: socket=PATH[,id=NAME][,queues=N][,queue-size=N][,wait=no]"
                     "[,removable=yes]"},
    DeviceKindOption{Kind::rng, "--rng", "An entropy device: socket=PATH[,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::virtio_console, "--virtio-console",
                     "A virtio console with ports: socket=PATH[,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::balloon, "--balloon",
                     "A memory balloon: socket=PATH[,queue-size=N][,wait=no]"},
    DeviceKindOption{Kind::virtio_mem, "--virtio-mem",
                     "Memory that grows and shrinks on the back-end's word, up to SIZE: "
                     "socket=PATH,size=SIZE[,queue-size=N][,wait=no]"},
    DeviceKindOption{
        Kind::vfio, "--vfio",
        "A PCI function of the host, bound to vfio-pci there, all of it for the guest: "
        "0000:01:10.0[,id=NAME]"},
};
// The driver fills the queues of a companion with buffers of whole pages.
constexpr unsigned companion_queue_size = 64;

bool is_companion(Kind kind) {
  return kind != Kind::net && kind != Kind::disk && kind != Kind::vfio;
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

// One has an address and a name, and nothing else.
Result<void> set_function_key(DeviceOption& device, const std::string& key,
                              const std::string& value) {
  if (key == "id") {
    if (!is_device_id(value))
      return fail("id=" + value + ": give 1 to 64 letters, digits, '-', '_', '.'");
    device.id = value;
  } else if (key == "address") {
    if (!vfio::is_pci_address(value)) {
      return fail("'" + value + "' is no PCI address such as 0000:01:10.0 (lspci -D)");
    }
    device.address = value;
  } else {
    return fail("cannot use " + key + "=" + value);
  }
  return {};
}

Result<void> set_key(DeviceOption& device, const std::string& key, const std::string& value) {
  if (device.kind == Kind::vfio) return set_function_key(device, key, value);
  constexpr unsigned queues_max = 256, queue_size_max = 32768;
  if (key == "socket" && !value.empty()) {
    device.socket = value;
  } else if (key == "id") {
    if (!is_device_id(value))
      return fail("id=" + value + ": give 1 to 64 letters, digits, '-', '_', '.'");
    device.id = value;
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
  } else if (key == "size" && device.kind == Kind::virtio_mem) {
    const auto size = base::parse_size(value);
    if (!size) return fail("size=" + value + ": " + size.error().message);
    device.size = *size;
  } else if (key == "removable" && device.kind != Kind::virtio_mem &&
             (value == "yes" || value == "no")) {
    device.removable = value == "yes";
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
  std::string memory = "256M", cpus = "1", cpu = "host", machine{millrace_1.name}, pages,
              reboot = "exit", console = "-", second_console = "none", sandbox = "on", config;
  std::array<std::vector<std::string>, device_kinds.size()> devices;  // by kind
  bool ksm = false;
};

void declare(CLI::App& app, Options& options, Texts& texts) {
  app.add_option("--config", texts.config,
                 "A TOML file of these options: kernel = \"vmlinuz\", [[net]] socket = ... What "
                 "stands on the command line too counts instead, and devices are added");
  app.add_option("--kernel", options.boot.kernel, "Linux bzImage (vmlinuz) or ELF kernel")
      ->required();
  app.add_option("--initrd", options.boot.initrd, "The kernel's first file system");
  app.add_option("--cmdline", options.boot.command_line, "The kernel's command line");
  app.add_option("--memory", texts.memory,
                 "The guest's memory, e.g. 512M or 4G (default 256M); 512M,max=4G,slots=8: room to "
                 "add some");
  app.add_option("--pages", texts.pages,
                 "Take the memory from the host's pool of pages of 2M or 1G");
  app.add_option("--numa-node", options.ram.numa_node, "Bind the memory to this node of the host");
  app.add_flag("--prefault", options.ram.prefault, "Touch all of the memory at the start");
  app.add_flag("--ksm", texts.ksm, "Refused: says why");
  app.add_option("--cpus", texts.cpus,
                 "vCPUs, 1 to " + std::to_string(cpus_max) + ", e.g. 2; 2,max=8: room to add some");
  app.add_option("--cpu", texts.cpu,
                 "The processor's model: host (default), x86-64-v2, x86-64-v3, x86-64-v4 or epyc");
  app.add_option("--machine", texts.machine,
                 "The machine profile, which fixes the guest's hardware (default: the newest, " +
                     texts.machine + ")");
  for (std::size_t i = 0; i < device_kinds.size(); ++i) {
    app.add_option(device_kinds[i].name, texts.devices[i], device_kinds[i].help)
        ->allow_extra_args(false);
  }
  app.add_option("--vfio-allow", options.functions,
                 "The address of a PCI function of the host that may be plugged in while the guest "
                 "runs; it is held for that from the start")
      ->allow_extra_args(false);
  app.add_option("--hotplug-slots", options.hotplug_slots,
                 "Free PCI slots for devices that are plugged in while the guest runs (default 8)");
  app.add_option("--console", texts.console,
                 "The first serial port: - (default: this terminal; Ctrl-] quits), socket:PATH, a "
                 "file, none");
  app.add_option("--second-console", texts.second_console, "The second serial port, likewise");
  app.add_option("--reboot", texts.reboot, "What a guest's reset does: exit (status 3) or restart")
      ->check(CLI::IsMember({"exit", "restart"}));
  app.add_option("--name", options.name, "The guest's name, for the log and for query-name");
  app.add_option("--control", options.control,
                 "Listen there for QMP commands: millctl vm SOCKET status");
  app.add_option("--dump-on-panic", options.dump_on_panic,
                 "Where the guest's memory goes (an ELF core file) when its kernel panics");
  app.add_option("--sandbox", texts.sandbox,
                 "on (default): no files and few system calls once the guest runs; off: for "
                 "debugging")
      ->check(CLI::IsMember({"on", "off"}));
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error"}));
}

// Names those that have none, and counts.
std::string finish_devices(Options& options) {
  std::set<std::string> ids;
  for (const auto& device : options.devices) {
    if (!device.id.empty() && !ids.insert(device.id).second) {
      return "two devices have the id '" + device.id + "': give each its own";
    }
  }
  std::map<Kind, unsigned> counts;
  for (auto& device : options.devices) {
    const auto name = name_of(device.kind) + std::to_string(counts[device.kind]++);
    if (!device.id.empty()) continue;
    device.id = name;
    if (!ids.insert(name).second) {
      return "the id '" + name + "' is that of a device that was given none: choose another";
    }
  }
  for (auto& device : options.devices) {
    if (device.kind != Kind::virtio_mem) continue;
    device.memory = static_cast<unsigned>(options.ram.managed.size());
    options.ram.managed.push_back(device.size);
  }
  const auto count = std::to_string(options.devices.size());
  constexpr auto most = pci_layout::ports_max;
  const auto ports = options.pci_ports() - options.hotplug_slots;
  if (ports > most) {
    return count + " devices do not fit on the PCI buses: at most " +
           std::to_string(pci_layout::direct_slots) + ", and " + std::to_string(most) +
           " more or removable ones";
  }
  if (options.hotplug_slots > most - ports) {
    return "--hotplug-slots " + std::to_string(options.hotplug_slots) + ": with " + count +
           " devices there is room for " + std::to_string(most - ports);
  }
  return {};
}

// All functions of the host, each once, and what goes with them.
std::string finish_functions(Options& options) {
  for (const auto& address : options.functions) {
    if (!vfio::is_pci_address(address)) {
      return "--vfio-allow " + address + ": that is no PCI address such as 0000:01:10.0 (lspci -D)";
    }
  }
  for (const auto& device : options.devices) {
    if (device.kind == Kind::vfio) options.functions.push_back(device.address);
  }
  std::set<std::string> seen;
  for (const auto& address : options.functions) {
    if (!seen.insert(address).second) return "the function " + address + " is named twice";
  }
  if (options.functions.empty()) return {};
  for (const auto& device : options.devices) {
    if (device.kind != Kind::balloon && device.kind != Kind::virtio_mem) continue;
    return "--" + name_of(device.kind) +
           " takes memory from the guest that functions of the host may be writing to: leave it "
           "out, or --vfio";
  }
  return {};
}

// The machine: its profile, its processors, its memory.
std::string set_sizes(Options& options, const Texts& texts) {
  const auto profile = find_profile(texts.machine);
  if (!profile) return "--machine: " + profile.error().message;
  const auto model = find_cpu_model(texts.cpu);
  if (!model) return "--cpu: " + model.error().message;
  options.cpu_model = *model;
  const auto cpus = parse_cpus(texts.cpus);
  if (!cpus) return "--cpus " + texts.cpus + ": " + cpus.error().message;
  options.cpus = cpus->count;
  options.cpus_most = cpus->most;
  const auto memory = parse_memory(texts.memory);
  if (!memory) return "--memory " + texts.memory + ": " + memory.error().message;
  options.ram.bytes = memory->bytes;
  options.ram.bytes_most = memory->most;
  options.ram.slots = memory->slots;
  return {};
}

// What CLI11 cannot check by itself. An empty line: all is well.
std::string finish(const CLI::App& app, Options& options, const Texts& texts) {
  if (auto wrong = set_sizes(options, texts); !wrong.empty()) return wrong;
  if (!texts.pages.empty()) {
    const auto wrong = to_bytes(texts.pages, options.ram.page_size);
    if (!wrong.empty()) return "--pages: " + wrong;
  }
  if (texts.ksm) {
    return "--ksm: KSM never merges shared memory (the kernel accepts MADV_MERGEABLE there and "
           "does nothing), and vhost-user needs shared memory: leave it out; memory is populated "
           "as the "
           "guest touches it, and free-page reporting gives it back";
  }
  if (!options.name.empty() && !is_device_id(options.name)) {
    return "--name " + options.name + ": give at most 64 letters, digits, - _ .";
  }
  options.sandbox = texts.sandbox == "on";
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
  if (auto wrong = finish_devices(options); !wrong.empty()) return wrong;
  return finish_functions(options);
}

// The file that --config names; an empty one where there is none. Says what is wrong with it.
std::optional<OptionFile> read_config(const CLI::App& app, const std::vector<std::string>& line) {
  constexpr std::string_view option{"--config"};
  std::string path;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == option && i + 1 < line.size()) path = line[i + 1];
    if (line[i].starts_with(std::string{option} + "=")) path = line[i].substr(option.size() + 1);
  }
  if (path.empty()) return OptionFile{};
  auto file = OptionFile::read(path, app, line);
  if (!file) {
    std::fprintf(stderr, "millrace-vmm: %s\n", file.error().message.c_str());
    return std::nullopt;
  }
  for (const auto& problem : file->problems()) {
    std::fprintf(stderr, "millrace-vmm: %s\n", problem.c_str());
  }
  if (!file->problems().empty()) return std::nullopt;
  return *std::move(file);
}

}  // namespace

std::string name_of(Kind kind) {
  const auto* const found = std::ranges::find(device_kinds, kind, &DeviceKindOption::kind);
  CHECK(found != device_kinds.end());
  return std::string{found->name}.substr(2);
}

std::optional<Kind> device_kind(std::string_view name) {
  const auto* const found = std::ranges::find_if(device_kinds, [&](const auto& each) {
    return name == std::string_view{each.name}.substr(2);
  });
  if (found == device_kinds.end()) return std::nullopt;
  return found->kind;
}

DeviceOption device_of(Kind kind) {
  DeviceOption device;
  device.kind = kind;
  if (is_companion(kind)) device.queue_size = companion_queue_size;
  // The host may want it back.
  device.removable = kind == Kind::vfio;
  return device;
}

unsigned Options::pci_ports() const {
  const auto removable =
      std::ranges::count_if(devices, [](const DeviceOption& each) { return each.removable; });
  return pci_layout::ports_needed(static_cast<unsigned>(devices.size()),
                                  static_cast<unsigned>(removable), hotplug_slots);
}

bool is_device_id(std::string_view id) {
  constexpr std::size_t most = 64;
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !id.empty() && id.size() <= most && std::ranges::all_of(id, fits);
}

Result<DeviceOption> parse_device(DeviceOption::Kind kind, const std::string& text) {
  auto device = device_of(kind);
  const auto wrong = [&](const std::string& why) {
    return fail("--" + name_of(kind) + " " + text + ": " + why);
  };
  std::size_t at = 0;
  while (at < text.size()) {
    const auto end = std::min(text.find(',', at), text.size());
    const auto part = text.substr(at, end - at);
    at = end + 1;
    const auto equals = part.find('=');
    const bool bare = device.kind == Kind::vfio && equals == std::string::npos;
    if (bare) {
      if (auto ok = set_key(device, "address", part); !ok) return wrong(ok.error().message);
      continue;
    }
    if (equals == std::string::npos) return wrong("'" + part + "' is no KEY=VALUE");
    if (auto ok = set_key(device, part.substr(0, equals), part.substr(equals + 1)); !ok) {
      return wrong(ok.error().message);
    }
  }
  if (device.kind == Kind::vfio) {
    if (device.address.empty()) return wrong("give the function's address: 0000:01:10.0");
    return device;
  }
  if (device.socket.empty()) return wrong("give the back-end's socket: socket=PATH");
  if (device.kind == Kind::virtio_mem && device.size == 0) {
    return wrong("give the most that the guest can have of it: size=SIZE");
  }
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
  const std::vector<std::string> line{argv + 1, argv + argc};
  const auto file = read_config(app, line);
  if (!file) {
    status = exit_usage;
    return std::nullopt;
  }
  auto words = file->words();
  words.insert(words.end(), line.begin(), line.end());
  try {
    std::ranges::reverse(words);  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    std::fputs(file->place_in(error.what()).c_str(), stderr);
    status = app.exit(error) == 0 ? exit_power_off : exit_usage;
    return std::nullopt;
  }
  const auto wrong = finish(app, options, texts);
  if (wrong.empty()) return options;
  std::fprintf(stderr, "millrace-vmm: %s%s\n", file->place_in(wrong).c_str(), wrong.c_str());
  status = exit_usage;
  return std::nullopt;
}

}  // namespace millrace::vmm

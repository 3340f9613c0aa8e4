#include "daemon/ctl/vm.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "daemon/ctl/table.hpp"

namespace millrace::ctl {

namespace {

using nlohmann::json;

void print(const json& value) {
  std::printf("%s\n", value.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

int refuse(const std::string& line) {
  return report(Failure{Failure::Kind::refused, line});
}

}  // namespace

std::vector<std::string> render_devices(const json& devices) {
  Table table{{{"ID"}, {"DRIVER"}, {"QUEUES", Align::right}, {"BACK-END"}, {"SOCKET", {}, 108}}};
  for (const auto& each : devices) {
    table.add({each.value("id", ""), each.value("driver", ""),
               std::to_string(each.value("queues", 0u)),
               each.value("connected", false) ? "connected" : "gone", each.value("socket", "")});
  }
  return table.lines(0, "");
}

std::string render_guest(const json& name, const json& status, const json& cpus) {
  auto line = name.value("name", std::string{"guest"}) + ": " + status.value("status", "unknown");
  if (status.contains("why")) line += " (" + status["why"].get<std::string>() + ")";
  return line + ", " + std::to_string(cpus.size()) + (cpus.size() == 1 ? " vCPU" : " vCPUs");
}

int show_guest(const Settings& settings) {
  auto client = Client::connect(settings.socket, settings.who);
  if (!client) return report(client.error());
  const auto name = client->execute("query-name");
  if (!name) return report(name.error());
  const auto status = client->execute("query-status");
  if (!status) return report(status.error());
  if (settings.json) return print(*status), exit_ok;
  const auto cpus = client->execute("query-cpus-fast");
  if (!cpus) return report(cpus.error());
  std::printf("%s\n", render_guest(*name, *status, *cpus).c_str());
  return exit_ok;
}

int show_devices(const Settings& settings) {
  auto client = Client::connect(settings.socket, settings.who);
  if (!client) return report(client.error());
  const auto devices = client->execute("query-devices");
  if (!devices) return report(devices.error());
  if (settings.json) return print(*devices), exit_ok;
  for (const auto& line : render_devices(*devices)) std::printf("%s\n", line.c_str());
  return exit_ok;
}

int remove_device(const Settings& settings, const std::string& id, unsigned wait_s) {
  auto client = Client::connect(settings.socket, settings.who);
  if (!client) return report(client.error());
  client->keep_events();
  const auto asked = client->execute("device_del", {{"id", id}});
  if (!asked) return report(asked.error());
  if (wait_s == 0) {
    if (settings.json) print(*asked);
    return exit_ok;
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{wait_s};
  for (;;) {
    const auto event = client->next_event(deadline);
    if (!event) {
      if (event.error().kind != Failure::Kind::late) return report(event.error());
      return refuse("the guest has not let go of " + id + " in " + std::to_string(wait_s) +
                    " s; it is still plugged in, and may go later");
    }
    const json data = event->value("data", json::object());
    if ((*event)["event"] != "DEVICE_DELETED" || data.value("device", "") != id) continue;
    if (settings.json) print(*event);
    return exit_ok;
  }
}

int dump_guest(const Settings& settings, const std::string& path) {
  auto client = Client::connect(settings.socket, settings.who);
  if (!client) return report(client.error());
  struct stat status {};
  const bool new_file = ::lstat(path.c_str(), &status) != 0;
  const base::Fd file{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
  if (!file) return refuse("cannot open " + path + ": " + std::strerror(errno));
  const std::string name = "millctl-dump-" + std::to_string(::getpid());
  auto answer = client->execute("getfd", {{"fdname", name}}, file.get());
  if (answer) {
    answer = client->execute("dump-guest-memory", {{"paging", false}, {"protocol", "fd:" + name}});
  }
  if (!answer) {
    if (new_file) ::unlink(path.c_str());
    return report(answer.error());
  }
  if (settings.json) return print(*answer), exit_ok;
  ::fstat(file.get(), &status);
  std::printf("%s: %lld MiB, %lld MiB of them on the disk\n", path.c_str(),
              static_cast<long long>(status.st_size >> 20),
              static_cast<long long>(status.st_blocks * 512 >> 20));
  return exit_ok;
}

}  // namespace millrace::ctl

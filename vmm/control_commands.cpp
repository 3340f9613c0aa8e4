// The commands that ask how the guest is, and that begin and end its running.
#include "qmp/arguments.hpp"
#include "qmp/version.hpp"
#include "vmm/control.hpp"

namespace millrace::vmm {

namespace {

using nlohmann::json;
using qmp::Arguments, qmp::CommandTable, qmp::refuse, qmp::Reply;

// A command without arguments whose answer is what `ask` says.
template <class Ask>
void add_query(CommandTable& table, const char* name, Ask ask) {
  table.add(name, [name, ask](const json& given, const Reply& reply) {
    if (const auto line = Arguments{given, name}.finish(); !line.empty()) {
      return reply(refuse(line));
    }
    reply(ask());
  });
}

// A command without arguments and without an answer.
template <class Act>
void add_action(CommandTable& table, const char* name, Act act) {
  add_query(table, name, [act] {
    act();
    return json::object();
  });
}

json status_of(const GuestControl& guest) {
  const auto status = guest.status();
  json answer{{"running", status.running}, {"status", status.status}};
  if (!status.why.empty()) answer["why"] = status.why;
  return answer;
}

json vcpus_of(const GuestControl& guest) {
  auto answer = json::array();
  for (const int thread : guest.vcpu_threads()) {
    const auto index = answer.size();
    answer.push_back({{"cpu-index", index},
                      {"thread-id", thread},
                      {"qom-path", "/machine/cpu[" + std::to_string(index) + "]"},
                      {"target", "x86_64"}});
  }
  return answer;
}

}  // namespace

base::Result<std::unique_ptr<Control>> Control::make(base::EventLoop& loop,
                                                     const std::string& socket,
                                                     GuestControl& guest) {
  std::unique_ptr<Control> control{new Control{guest}};
  CommandTable table;
  control->add_queries(table);
  control->add_actions(table);
  control->add_devices(table);
  control->add_dump(table);
  control->add_descriptors(table);
  auto server = qmp::Server::make(
      loop,
      {.socket = socket, .permissions = 0600, .version = qmp::version_object(MILLRACE_VERSION)},
      std::move(table));
  if (!server) return base::Unexpected{server.error()};
  control->server_ = *std::move(server);
  return control;
}

void Control::emit(std::string_view event, const json& data) {
  server_->emit(event, data);
}

void Control::add_queries(CommandTable& table) {
  const GuestControl& guest = guest_;
  add_query(table, "query-status", [&guest] { return status_of(guest); });
  add_query(table, "query-name", [&guest] {
    const auto name = guest.name();
    return name.empty() ? json::object() : json{{"name", name}};
  });
  add_query(table, "query-version", [] { return qmp::version_object(MILLRACE_VERSION); });
  add_query(table, "query-kvm", [] { return json{{"enabled", true}, {"present", true}}; });
  add_query(table, "query-cpus-fast", [&guest] { return vcpus_of(guest); });
}

void Control::add_actions(CommandTable& table) {
  GuestControl& guest = guest_;
  add_action(table, "stop", [&guest] { guest.pause(); });
  add_action(table, "cont", [&guest] { guest.resume(); });
  add_action(table, "system_powerdown", [&guest] { guest.press_power_button(); });
  add_action(table, "system_reset", [&guest] { guest.reset(); });
  add_action(table, "quit", [&guest] { guest.quit(); });
}

}  // namespace millrace::vmm

// The commands for dumps, and for the descriptors that they are written to.
#include <fcntl.h>

#include <utility>

#include "base/error.hpp"
#include "qmp/arguments.hpp"
#include "vmm/control.hpp"

namespace millrace::vmm {

namespace {

using nlohmann::json;
using qmp::Arguments, qmp::refuse, qmp::Reply;

json progress_of(const DumpProgress& progress) {
  return {
      {"status", progress.status}, {"completed", progress.completed}, {"total", progress.total}};
}

}  // namespace

json dump_event(const DumpProgress& progress) {
  json event{{"result", progress_of(progress)}};
  if (!progress.error.empty()) event["error"] = progress.error;
  return event;
}

// "fd:NAME" or "file:PATH".
base::Result<base::Fd> Control::open_dump(const std::string& protocol) {
  const std::string by_name = "fd:", by_path = "file:";
  if (protocol.starts_with(by_name)) {
    const auto found = descriptors_.find(protocol.substr(by_name.size()));
    if (found == descriptors_.end()) {
      return base::fail("dump-guest-memory: there is no descriptor \"" +
                        protocol.substr(by_name.size()) + "\"; give it by getfd first");
    }
    auto fd = std::move(found->second);
    descriptors_.erase(found);
    return fd;
  }
  if (!protocol.starts_with(by_path)) {
    return base::fail("dump-guest-memory: \"protocol\" is fd:NAME or file:PATH");
  }
  const auto path = protocol.substr(by_path.size());
  base::Fd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600)};
  if (fd) return fd;
  auto wrong = base::fail_errno("dump-guest-memory: cannot open " + path);
  wrong.error.message +=
      "; open the file yourself, pass it by getfd and give \"fd:NAME\" (millctl vm does so)";
  return wrong;
}

void Control::begin_dump(const json& given, const Reply& reply) {
  Arguments arguments{given, "dump-guest-memory"};
  const auto paging = arguments.optional_boolean("paging");
  const auto protocol = arguments.text("protocol");
  const bool detach = arguments.optional_boolean("detach").value_or(false);
  const auto format = arguments.optional_text("format").value_or("elf");
  if (!paging) arguments.wrong("\"paging\" is missing");
  if (paging.value_or(false)) arguments.wrong("\"paging\" has to be false: a dump is physical");
  if (format != "elf") arguments.wrong("\"format\" has to be elf");
  if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
  auto file = open_dump(protocol);
  if (!file) return reply(refuse(file.error().message));
  const auto begun =
      guest_.dump(*std::move(file), [this, reply, detach](const DumpProgress& progress) {
        emit("DUMP_COMPLETED", dump_event(progress));
        if (detach) return;
        if (progress.error.empty()) return reply(json::object());
        reply(refuse("dump-guest-memory: " + progress.error));
      });
  if (!begun) return reply(refuse("dump-guest-memory: " + begun.error().message));
  if (detach) reply(json::object());
}

void Control::add_dump(qmp::CommandTable& table) {
  table.add("dump-guest-memory",
            [this](const json& given, const Reply& reply) { begin_dump(given, reply); });
  table.add("query-dump", [this](const json& given, const Reply& reply) {
    const auto line = Arguments{given, "query-dump"}.finish();
    if (!line.empty()) return reply(refuse(line));
    reply(progress_of(guest_.dump_progress()));
  });
}

void Control::add_descriptors(qmp::CommandTable& table) {
  table.add_with_descriptor("getfd", [this](const json& given, base::Fd fd, const Reply& reply) {
    Arguments arguments{given, "getfd"};
    const auto name = arguments.text("fdname");
    constexpr std::size_t name_max = 64;
    if (name.size() > name_max) arguments.wrong("\"fdname\" is longer than 64 bytes");
    if (!fd) arguments.wrong("no descriptor came with the request (SCM_RIGHTS)");
    if (descriptors_.size() >= descriptors_max && !descriptors_.contains(name)) {
      arguments.wrong("16 descriptors are here already; closefd takes one away");
    }
    if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
    descriptors_.insert_or_assign(name, std::move(fd));
    reply(json::object());
  });
  table.add("closefd", [this](const json& given, const Reply& reply) {
    Arguments arguments{given, "closefd"};
    const auto name = arguments.text("fdname");
    if (const auto line = arguments.finish(); !line.empty()) return reply(refuse(line));
    if (descriptors_.erase(name) == 0) {
      return reply(refuse("closefd: there is no descriptor \"" + name + "\""));
    }
    reply(json::object());
  });
}

}  // namespace millrace::vmm

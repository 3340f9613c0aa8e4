#include "daemon/ctl/commands.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/one_line.hpp"
#include "daemon/ctl/rates.hpp"
#include "daemon/ctl/terminal.hpp"

namespace millrace::ctl {

namespace {

using nlohmann::json;

std::string text_of(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

void print(const json& value) {
  std::printf("%s\n", text_of(value, 2).c_str());
}

void print(const std::vector<std::string>& lines) {
  for (const auto& line : lines) std::printf("%s\n", line.c_str());
}

ScreenOptions screen_options() {
  ScreenOptions options;
  options.colour = wants_colour(STDOUT_FILENO);
  if (::isatty(STDOUT_FILENO) != 0) options.width = terminal_size(STDOUT_FILENO).width;
  return options;
}

// Redraws until q or a signal, or until the daemon is gone: that is for the caller to tell, once
// the terminal is given back.
std::optional<Failure> watch(Client& client, json before, const StatusOptions& options,
                             int interval_ms) {
  Terminal terminal;
  auto screen = screen_options();
  screen.sort = options.sort;
  json after = before;
  int wait_ms = std::min(interval_ms, 500);
  for (;;) {
    const auto size = terminal_size(STDOUT_FILENO);
    // A full line would leave the cursor on its last character, and erase it.
    screen.width = std::max<std::size_t>(size.width, 2) - 1;
    screen.height = size.height;
    terminal.draw(render_status(before, after, screen));
    const char key = terminal.wait_key(wait_ms);
    if (key == 'q') return std::nullopt;
    if (key == 's') screen.sort = static_cast<SortKey>((static_cast<int>(screen.sort) + 1) % 4);
    if (key != 0) continue;  // drawn anew at once; the next sample comes in its time
    auto sample = client.execute("query-all");
    if (!sample) return sample.error();
    before = std::move(after);
    after = *std::move(sample);
    wait_ms = interval_ms;
  }
}

}  // namespace

int report(const Failure& failure) {
  std::fprintf(stderr, "millctl: %s\n", base::one_line(failure.line).c_str());
  return failure.kind == Failure::Kind::unreachable ? exit_unreachable : exit_refused;
}

int ask(const Settings& settings, const std::string& command, const json& arguments,
        const std::function<void(const json&)>& show) {
  auto client = Client::connect(settings.socket, settings.who);
  if (!client) return report(client.error());
  const auto answer = client->execute(command, arguments);
  if (!answer) return report(answer.error());
  settings.json ? print(*answer) : show(*answer);
  return exit_ok;
}

int show_status(const Settings& settings, const StatusOptions& options) {
  auto client = Client::connect(settings.socket);
  if (!client) return report(client.error());
  auto before = client->execute("query-all");
  if (!before) return report(before.error());
  const double interval_s = options.interval_s > 0 ? options.interval_s : options.watch ? 1 : 0.5;
  if (options.watch && !settings.json) {
    const auto gone = watch(*client, *before, options, static_cast<int>(interval_s * 1000));
    return gone ? report(*gone) : exit_ok;
  }
  do {
    ::usleep(static_cast<useconds_t>(interval_s * 1e6));
    auto after = client->execute("query-all");
    if (!after) return report(after.error());
    if (settings.json) {
      auto out = *after;
      out["rates"] = rates_as_json(*before, *after);
      std::printf("%s\n", text_of(out, options.watch ? -1 : 2).c_str());
      std::fflush(stdout);
    } else {
      auto screen = screen_options();
      screen.sort = options.sort;
      print(render_status(*before, *after, screen));
    }
    before = std::move(after);
  } while (options.watch);
  return exit_ok;
}

int show_list(const Settings& settings, const std::string& kind) {
  return ask(settings, "query-" + kind, json::object(), [&](const json& answer) {
    const auto screen = screen_options();
    print(kind == "counters" ? render_counters(answer, screen) : render_list(kind, answer, screen));
  });
}

int show_metrics(const Settings& settings) {
  return ask(settings, "query-metrics", json::object(),
             [](const json& answer) { std::fputs(answer.get<std::string>().c_str(), stdout); });
}

int show_events(const Settings& settings, unsigned count) {
  auto client = Client::connect(settings.socket, settings.who);
  if (!client) return report(client.error());
  for (unsigned seen = 0; count == 0 || seen < count; ++seen) {
    const auto event = client->next_event();
    if (!event) return report(event.error());
    if (settings.json) {
      std::printf("%s\n", text_of(*event, -1).c_str());
    } else {
      const auto& time = (*event)["timestamp"];
      std::printf("%lld.%06lld %s %s\n", time["seconds"].get<long long>(),
                  time["microseconds"].get<long long>(),
                  (*event)["event"].get<std::string>().c_str(),
                  text_of(event->value("data", json::object()), -1).c_str());
    }
    std::fflush(stdout);
    if ((*event)["event"] == "SHUTDOWN") return exit_ok;
  }
  return exit_ok;
}

int execute(const Settings& settings, const std::string& command, const json& arguments) {
  return ask(settings, command, arguments, [](const json&) {});
}

int send_raw(const Settings& settings, const std::string& request) {
  auto client = Client::connect(settings.socket);
  if (!client) return report(client.error());
  const auto answer = client->raw(request);
  if (!answer) return report(answer.error());
  print(*answer);
  return answer->contains("error") ? exit_refused : exit_ok;
}

}  // namespace millrace::ctl

#include "daemon/control.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace millrace::daemon {

namespace {

base::Fd new_socket() {
  return base::Fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
}

// True when a socket file is there and nobody listens on it.
bool is_stale(const sockaddr_un& address) {
  const auto probe = new_socket();
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  return probe && ::connect(probe.get(), name, sizeof address) != 0 && errno == ECONNREFUSED;
}

base::Result<base::Fd> bind_socket(const std::string& path, unsigned permissions) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return base::fail("socket path too long: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  auto listener = new_socket();
  if (!listener) return base::fail(std::string{"cannot make a socket: "} + std::strerror(errno));
  // Before bind(2), so that the file never has a wider mode than asked for.
  ::fchmod(listener.get(), permissions);
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  int bound = ::bind(listener.get(), name, sizeof address);
  if (bound != 0 && errno == EADDRINUSE) {
    if (!is_stale(address)) {
      return base::fail("control socket " + path +
                        " is in use by another process; stop that one, or give another path");
    }
    ::unlink(path.c_str());
    bound = ::bind(listener.get(), name, sizeof address);
  }
  if (bound != 0) return base::fail("control socket " + path + ": " + std::strerror(errno));
  if (::chmod(path.c_str(), permissions) != 0 || ::listen(listener.get(), 64) != 0) {
    return base::fail("control socket " + path + ": " + std::strerror(errno));
  }
  return listener;
}

}  // namespace

base::Result<std::unique_ptr<Control>> Control::make(base::EventLoop& loop,
                                                     const std::string& socket,
                                                     unsigned permissions, CommandTable table) {
  auto listener = bind_socket(socket, permissions);
  if (!listener) return base::Unexpected{listener.error()};
  std::unique_ptr<Control> control{
      new Control{loop, socket, *std::move(listener), std::move(table)}};
  if (auto listening = control->listen(); !listening) return base::Unexpected{listening.error()};
  return control;
}

Control::Control(base::EventLoop& loop, std::string socket, base::Fd listener, CommandTable table)
    : loop_{loop},
      socket_{std::move(socket)},
      listener_{std::move(listener)},
      table_{std::move(table)} {
  table_.add("query-commands", [this](const nlohmann::json& arguments, const Reply& reply) {
    if (!arguments.empty()) return reply(refuse("query-commands takes no arguments"));
    auto names = nlohmann::json::array();
    for (const auto& [name, handler] : table_.all()) names.push_back({{"name", name}});
    reply(names);
  });
}

Control::~Control() {
  *alive_ = false;
  for (const auto& client : clients_) client->close();
  ::unlink(socket_.c_str());
}

base::Result<void> Control::listen() {
  auto watch = loop_.watch(listener_.get(), EPOLLIN, [this](std::uint32_t) { accept_clients(); });
  if (!watch) return base::Unexpected{watch.error()};
  watch_ = *std::move(watch);
  return {};
}

void Control::accept_clients() {
  for (int i = 0; i < 16; ++i) {
    base::Fd socket{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!socket) {
      if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS) return;
      // The listener stays readable: look again when descriptors may be back.
      watch_.modify(0);
      pause_ = loop_.after(std::chrono::milliseconds{200}, [this] { watch_.modify(EPOLLIN); });
      return;
    }
    if (clients_.size() >= clients_max) continue;
    auto gone = [this, alive = alive_](ControlClient& client) {
      if (*alive) forget(client);
    };
    clients_.push_back(
        std::make_shared<ControlClient>(loop_, std::move(socket), table_, std::move(gone)));
    clients_.back()->start();
  }
}

void Control::forget(ControlClient& client) {
  std::erase_if(clients_, [&](const auto& each) { return each.get() == &client; });
}

void Control::emit(std::string_view name, const nlohmann::json& data) {
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  const nlohmann::json event{
      {"event", name},
      {"data", data},
      {"timestamp", {{"seconds", now / 1'000'000}, {"microseconds", now % 1'000'000}}}};
  const auto text = event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  // A client that is cut off leaves the list later, from the event loop.
  for (const auto& client : clients_) client->send_event(text);
}

}  // namespace millrace::daemon

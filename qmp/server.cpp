#include "qmp/server.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/check.hpp"
#include "base/error.hpp"

namespace millrace::qmp {

namespace {

base::Fd new_socket() {
  return base::Fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
}

bool is_socket(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode);
}

// True when a socket file is there and nobody listens on it.
bool is_stale(const sockaddr_un& address) {
  const auto probe = new_socket();
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  return probe && ::connect(probe.get(), name, sizeof address) != 0 && errno == ECONNREFUSED;
}

base::Unexpected<base::Error> cannot(const std::string& path) {
  return base::fail_errno("control socket " + path);
}

// A descriptor of the folder that `path` is in, and the name in it.
base::Result<base::Fd> open_folder(const std::string& path, std::string& name) {
  const auto slash = path.rfind('/');
  name = slash == std::string::npos ? path : path.substr(slash + 1);
  const auto folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  base::Fd fd{::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return cannot(path);
  return fd;
}

// Listens under a name of its own. Through /proc, because a longer path might not fit.
base::Result<base::Fd> listen_in(int folder, const std::string& name, const std::string& path,
                                 unsigned permissions) {
  auto listener = new_socket();
  if (!listener) return base::fail_errno("cannot make a socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const auto at = "/proc/self/fd/" + std::to_string(folder) + "/" + name;
  CHECK(at.size() < sizeof address.sun_path);
  std::memcpy(address.sun_path, at.c_str(), at.size() + 1);
  ::unlinkat(folder, name.c_str(), 0);  // of a process that was killed here
  // Before bind(2), so that the file never has a wider mode than asked for.
  ::fchmod(listener.get(), permissions);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::fchmodat(folder, name.c_str(), permissions, 0) != 0 || ::listen(listener.get(), 64) != 0) {
    const auto wrong = cannot(path);
    ::unlinkat(folder, name.c_str(), 0);
    return wrong;
  }
  return listener;
}

// Gives the listening socket its real name, which fails where the name is taken, stale or not.
base::Result<base::Fd> bind_socket(const std::string& path, unsigned permissions) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return base::fail("socket path too long: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  std::string name;
  const auto folder = open_folder(path, name);
  if (!folder) return base::Unexpected{folder.error()};
  const int at = folder->get();
  const auto mine = ".millrace-" + std::to_string(::getpid());
  auto listener = listen_in(at, mine, path, permissions);
  if (!listener) return listener;
  int linked = ::linkat(at, mine.c_str(), at, name.c_str(), 0);
  const bool taken = linked != 0 && errno == EEXIST;
  const bool stale = taken && is_socket(path) && is_stale(address);
  if (stale) {
    ::unlink(path.c_str());
    linked = ::linkat(at, mine.c_str(), at, name.c_str(), 0);
  }
  const auto wrong = cannot(path);
  ::unlinkat(at, mine.c_str(), 0);
  if (linked == 0) return listener;
  if (!taken || stale) return wrong;
  if (!is_socket(path)) return base::fail("control socket " + path + ": a file is there already");
  return base::fail("control socket " + path +
                    " is in use by another process; stop that one, or give another path");
}

}  // namespace

base::Result<std::unique_ptr<Server>> Server::make(base::EventLoop& loop, ServerOptions options,
                                                   CommandTable table) {
  auto listener = bind_socket(options.socket, options.permissions);
  if (!listener) return base::Unexpected{listener.error()};
  std::unique_ptr<Server> server{
      new Server{loop, std::move(options), *std::move(listener), std::move(table)}};
  if (auto listening = server->listen(); !listening) return base::Unexpected{listening.error()};
  return server;
}

Server::Server(base::EventLoop& loop, ServerOptions options, base::Fd listener, CommandTable table)
    : loop_{loop},
      options_{std::move(options)},
      listener_{std::move(listener)},
      table_{std::move(table)} {
  table_.add("query-commands", [this](const nlohmann::json& arguments, const Reply& reply) {
    if (!arguments.empty()) return reply(refuse("query-commands takes no arguments"));
    auto names = nlohmann::json::array();
    for (const auto& [name, entry] : table_.all()) names.push_back({{"name", name}});
    reply(names);
  });
}

Server::~Server() {
  *alive_ = false;
  for (const auto& client : clients_) client->close();
  ::unlink(options_.socket.c_str());
}

base::Result<void> Server::listen() {
  auto watch = loop_.watch(listener_.get(), EPOLLIN, [this](std::uint32_t) { accept_clients(); });
  if (!watch) return base::Unexpected{watch.error()};
  watch_ = *std::move(watch);
  return {};
}

void Server::accept_clients() {
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
    auto gone = [this, alive = alive_](Connection& client) {
      if (*alive) forget(client);
    };
    clients_.push_back(std::make_shared<Connection>(loop_, std::move(socket), options_.version,
                                                    table_, std::move(gone)));
    clients_.back()->start();
  }
}

void Server::forget(Connection& client) {
  std::erase_if(clients_, [&](const auto& each) { return each.get() == &client; });
}

void Server::emit(std::string_view name, const nlohmann::json& data) {
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  nlohmann::json event{
      {"event", name},
      {"timestamp", {{"seconds", now / 1'000'000}, {"microseconds", now % 1'000'000}}}};
  if (!data.is_null()) event["data"] = data;
  const auto text = event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  // A client that is cut off leaves the list later, from the event loop.
  for (const auto& client : clients_) client->send_event(text);
}

}  // namespace millrace::qmp

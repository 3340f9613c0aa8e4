// Server: a control socket. Accepts clients, sends events to all of them.
//
// The socket's file appears when the socket listens, so whoever sees it can connect. Thread: the
// loop's.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "qmp/command_table.hpp"
#include "qmp/connection.hpp"

namespace millrace::qmp {

struct ServerOptions {
  std::string socket;
  unsigned permissions = 0600;
  nlohmann::json version;  // what the greeting says: version_object()
};

class Server {
 public:
  static constexpr std::size_t clients_max = 64;

  // Binds the socket. A stale file that nobody listens on is replaced; a live one is an error.
  static base::Result<std::unique_ptr<Server>> make(base::EventLoop& loop, ServerOptions options,
                                                    CommandTable table);
  ~Server();  // hangs up on all clients, removes the socket file
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // {"event": NAME, "data": DATA, "timestamp": {...}} to every client that negotiated. Where DATA
  // is null there is no such member.
  void emit(std::string_view name, const nlohmann::json& data);
  [[nodiscard]] std::size_t clients() const { return clients_.size(); }

 private:
  Server(base::EventLoop& loop, ServerOptions options, base::Fd listener, CommandTable table);
  base::Result<void> listen();
  void accept_clients();
  void forget(Connection& client);

  base::EventLoop& loop_;
  const ServerOptions options_;
  base::Fd listener_;
  CommandTable table_;
  base::EventLoop::Watch watch_;
  base::EventLoop::Timer pause_;  // after accept(2) failed for want of descriptors
  std::vector<std::shared_ptr<Connection>> clients_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace::qmp

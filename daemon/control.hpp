// Control: the daemon's control socket. Accepts clients, sends events to all of them. Thread:
// control.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "daemon/command_table.hpp"
#include "daemon/control_client.hpp"

namespace millrace::daemon {

class Control {
 public:
  static constexpr std::size_t clients_max = 64;

  // Binds `socket`. A stale file that nobody listens on is replaced; a live one is an error.
  static base::Result<std::unique_ptr<Control>> make(base::EventLoop& loop,
                                                     const std::string& socket,
                                                     unsigned permissions, CommandTable table);
  ~Control();  // hangs up on all clients, removes the socket file
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  // {"event": NAME, "data": DATA, "timestamp": {...}} to every client that negotiated.
  void emit(std::string_view name, const nlohmann::json& data);
  [[nodiscard]] std::size_t clients() const { return clients_.size(); }

 private:
  Control(base::EventLoop& loop, std::string socket, base::Fd listener, CommandTable table);
  base::Result<void> listen();
  void accept_clients();
  void forget(ControlClient& client);

  base::EventLoop& loop_;
  std::string socket_;
  base::Fd listener_;
  CommandTable table_;
  base::EventLoop::Watch watch_;
  base::EventLoop::Timer pause_;  // after accept(2) failed for want of descriptors
  std::vector<std::shared_ptr<ControlClient>> clients_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace::daemon

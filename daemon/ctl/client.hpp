// Client: millctl's end of the control socket. Blocking; one thread.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::ctl {

// Why there is no answer: the daemon said no, or there is no daemon to ask.
struct Failure {
  enum class Kind { refused, unreachable } kind;
  std::string line;
};

template <class T>
using Outcome = base::Result<T, Failure>;

class Client {
 public:
  // Connects, reads the greeting, negotiates.
  static Outcome<Client> connect(const std::string& socket);

  // Executes a command and waits for its answer; events meanwhile are dropped.
  Outcome<nlohmann::json> execute(const std::string& command,
                                  const nlohmann::json& arguments = nlohmann::json::object());
  // Sends one request as it is and answers the whole response object.
  Outcome<nlohmann::json> raw(const std::string& request);
  // Waits for the next event.
  Outcome<nlohmann::json> next_event();
  // The descriptor, to wait for it beside others.
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  explicit Client(base::Fd socket) : socket_{std::move(socket)} {}
  Outcome<nlohmann::json> next_message();
  Outcome<nlohmann::json> next_answer();
  std::optional<Failure> send(const std::string& text);

  base::Fd socket_;
  // Answers may be larger than what the daemon takes: no bound but memory.
  std::string input_;
};

}  // namespace millrace::ctl

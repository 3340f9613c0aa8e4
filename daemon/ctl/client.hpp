// Client: millctl's end of a control socket, millraced's or millrace-vmm's. Blocking; one thread.
#pragma once

#include <chrono>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::ctl {

// Why there is no answer: the program said no, there is no program to ask, or it takes too long.
struct Failure {
  enum class Kind { refused, unreachable, late } kind;
  std::string line;
};

template <class T>
using Outcome = base::Result<T, Failure>;

class Client {
 public:
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

  // Connects, reads the greeting, negotiates. `who` is whose socket it should be.
  static Outcome<Client> connect(const std::string& socket, const std::string& who = "millraced");

  // Executes a command and waits for its answer; events meanwhile are dropped, but for those that
  // keep_events() asked for. `fd`: a descriptor to send along.
  Outcome<nlohmann::json> execute(const std::string& command,
                                  const nlohmann::json& arguments = nlohmann::json::object(),
                                  int fd = -1);
  // From now on events that come before an answer are there for next_event().
  void keep_events() { keep_events_ = true; }
  // Sends one request as it is and answers the whole response object.
  Outcome<nlohmann::json> raw(const std::string& request);
  // Waits for the next event.
  Outcome<nlohmann::json> next_event(Deadline deadline = std::nullopt);
  // The descriptor, to wait for it beside others.
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  Client(base::Fd socket, std::string who) : socket_{std::move(socket)}, who_{std::move(who)} {}
  Outcome<nlohmann::json> next_message(Deadline deadline = std::nullopt);
  Outcome<nlohmann::json> next_answer();
  std::optional<Failure> send(const std::string& text, int fd = -1);
  [[nodiscard]] bool wait_until(Deadline deadline) const;

  base::Fd socket_;
  std::string who_;
  bool keep_events_ = false;
  std::deque<nlohmann::json> events_;
  // Answers may be larger than what the daemon takes: no bound but memory.
  std::string input_;
};

}  // namespace millrace::ctl

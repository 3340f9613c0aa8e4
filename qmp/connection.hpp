// Connection: one client of the control socket, speaking the QMP wire protocol.
//
// One command at a time and in order; the next is read when the answer is out. What a client may
// hold is bounded: input by JsonFramer, descriptors by descriptors_max, output by output_max (a
// client that does not read its answers and events is cut off). Nothing here blocks. Thread: the
// loop's.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "qmp/command_table.hpp"
#include "qmp/json_framer.hpp"

namespace millrace::qmp {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  static constexpr std::size_t output_max = 4 * 1024 * 1024;
  // Above this much unread output no further command is taken.
  static constexpr std::size_t output_pause = 256 * 1024;
  // Descriptors that were sent and not taken yet; more are closed at once.
  static constexpr std::size_t descriptors_max = 8;

  // `version` (for the greeting) and `table` must outlive it. `gone` runs once, from the event
  // loop, when the client may be dropped.
  Connection(base::EventLoop& loop, base::Fd socket, const nlohmann::json& version,
             const CommandTable& table, std::function<void(Connection&)> gone);

  // Greets and begins to read.
  void start();
  // An asynchronous event, already text. Ignored before qmp_capabilities.
  void send_event(const std::string& text);
  // Sends what the socket takes at once, then hangs up.
  void close();

 private:
  void on_events(std::uint32_t events);
  void read_some();
  ssize_t receive(char* bytes, std::size_t size);
  void process();
  void execute(const std::string& document);
  void run(const std::string& name, const nlohmann::json& arguments, nlohmann::json id);
  base::Fd take_descriptor();
  void answer(const nlohmann::json& message);
  void answer_error(const CommandError& error, const nlohmann::json& id);
  void write(std::string text);
  void flush();
  void update_watch();

  base::EventLoop& loop_;
  base::Fd socket_;
  const nlohmann::json& version_;
  const CommandTable& table_;
  std::function<void(Connection&)> gone_;
  base::EventLoop::Watch watch_;
  std::uint32_t watched_ = 0;
  JsonFramer framer_;
  std::deque<base::Fd> descriptors_;  // sent along, not taken yet
  std::string output_;
  bool ready_ = false;  // qmp_capabilities was executed
  bool busy_ = false;   // a command is being executed
  bool ended_ = false;  // the client sends no more
  bool closed_ = false;
};

}  // namespace millrace::qmp

// ControlClient: one connection to the control socket, speaking the QMP wire protocol.
//
// One command at a time and in order; the next is read when the answer is out. What a client may
// hold is bounded: input by JsonFramer, output by output_max (a client that does not read its
// answers and events is cut off). Nothing here blocks. Thread: control.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "daemon/command_table.hpp"
#include "daemon/json_framer.hpp"

namespace millrace::daemon {

class ControlClient : public std::enable_shared_from_this<ControlClient> {
 public:
  static constexpr std::size_t output_max = 4 * 1024 * 1024;
  // Above this much unread output no further command is taken.
  static constexpr std::size_t output_pause = 256 * 1024;

  // `table` must outlive it. `gone` runs once, from the event loop, when the client may be dropped.
  ControlClient(base::EventLoop& loop, base::Fd socket, const CommandTable& table,
                std::function<void(ControlClient&)> gone);

  // Greets and begins to read.
  void start();
  // An asynchronous event, already text. Ignored before qmp_capabilities.
  void send_event(const std::string& text);
  // Sends what the socket takes at once, then hangs up.
  void close();

 private:
  void on_events(std::uint32_t events);
  void read_some();
  void process();
  void execute(const std::string& document);
  void run(const std::string& name, const nlohmann::json& arguments, nlohmann::json id);
  void answer(const nlohmann::json& message);
  void answer_error(const CommandError& error, const nlohmann::json& id);
  void write(std::string text);
  void flush();
  void update_watch();

  base::EventLoop& loop_;
  base::Fd socket_;
  const CommandTable& table_;
  std::function<void(ControlClient&)> gone_;
  base::EventLoop::Watch watch_;
  std::uint32_t watched_ = 0;
  JsonFramer framer_;
  std::string output_;
  bool ready_ = false;  // qmp_capabilities was executed
  bool busy_ = false;   // a command is being executed
  bool ended_ = false;  // the client sends no more
  bool closed_ = false;
};

}  // namespace millrace::daemon

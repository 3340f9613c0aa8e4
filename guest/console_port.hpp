// ConsolePort: the host's end of a console port: a socket that one program at a time connects to,
// and what it says and hears. A program that does not read stops the port's pipe, and so the guest;
// nothing here waits for it. Thread: control.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "guest/config.hpp"
#include "guest/pipe.hpp"
#include "guest/port_listener.hpp"

namespace millrace::guest {

class ConsolePort {
 public:
  // `out`: from the guest, `in`: to it; both outlive the port. `turn`: something may have changed;
  // called from the event loop, and calls turn() here in its own time.
  static base::Result<std::unique_ptr<ConsolePort>> make(base::EventLoop& loop,
                                                         const PortSettings& settings, Pipe& out,
                                                         Pipe& in, std::function<void()> turn);
  ConsolePort(base::EventLoop& loop, const PortSettings& settings, PortListener listener, Pipe& out,
              Pipe& in, std::function<void()> turn);
  ~ConsolePort();
  ConsolePort(const ConsolePort&) = delete;
  ConsolePort& operator=(const ConsolePort&) = delete;

  [[nodiscard]] const PortSettings& settings() const { return settings_; }
  // A program is there, or what one said last is not with the guest yet.
  [[nodiscard]] bool connected() const { return client_.valid() || draining_; }

  // Moves what can be moved. `guest_reads`: a program of the guest has the port open. True: the
  // pipes' other ends should look.
  bool turn(bool guest_reads);

 private:
  // Bytes a turn and direction: others want to be served too.
  static constexpr std::size_t turn_max = 256 << 10;

  base::Result<void> listen();
  void accept();
  void on_client(std::uint32_t events);
  bool send_out();
  bool take_in();
  void lose();
  void watch_client(bool guest_reads);

  base::EventLoop& loop_;
  const PortSettings settings_;
  const PortListener listener_;
  Pipe& out_;
  Pipe& in_;
  const std::function<void()> turn_;
  base::EventLoop::Watch listen_watch_, client_watch_;
  base::Fd client_;
  bool hung_up_ = false;   // the program closed its end; what it said is still to be read
  bool draining_ = false;  // it is gone; what it said is still in the pipe
};

}  // namespace millrace::guest

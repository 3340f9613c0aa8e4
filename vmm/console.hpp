// Console: the host's end of a serial port: this terminal, a file, or a socket that one client at a
// time connects to. What nobody takes is kept, the newest 64 KiB of it.
//
// Thread: the loop's; transmit() and room() from any.
#pragma once

#include <termios.h>

#include <array>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::vmm {

class Console {
 public:
  static constexpr std::size_t backlog_max = 1 << 16;
  static constexpr std::byte quit_key{0x1d};  // Ctrl-]: a terminal's way out

  // Takes input for the guest, answers how many bytes it took.
  using Input = std::function<std::size_t(std::span<const std::byte>)>;

  // `where`: "-" (standard input and output; a terminal is put into raw mode until the end),
  // "socket:PATH" (listens there; a newer client replaces an older one), "none", or a file's path
  // (made new, output only). `quit` is called for the quit key of a terminal.
  static base::Result<std::unique_ptr<Console>> make(base::EventLoop& loop,
                                                     const std::string& where,
                                                     std::function<void()> quit);
  // The path in "socket:PATH", empty for any other place.
  static std::string socket_path(const std::string& where);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // Where input goes from now on; an empty function: nowhere, it waits.
  void set_input(Input input);
  // A byte from the guest. Never blocks; the loop puts it out, in milliseconds at the latest.
  void transmit(std::byte byte);
  // The guest has room for input again.
  void room();

 private:
  explicit Console(base::EventLoop& loop) : loop_{loop} {}
  base::Result<void> open(const std::string& where, std::function<void()> quit);
  base::Result<void> open_terminal(std::function<void()> quit);
  base::Result<void> open_socket(const std::string& path);
  base::Result<void> open_file(const std::string& path);
  void accept();
  void drop_client();
  void on_input();
  void give_input();
  void watch_input();
  bool flush();  // with the lock held; true: nothing is left
  void on_wake();
  void put_output();

  base::EventLoop& loop_;
  base::Fd wake_;  // transmit() and room() want the loop's attention
  base::Fd listener_, client_, file_;
  std::string socket_path_;
  int in_ = -1, out_ = -1;
  bool out_is_socket_ = false;
  std::optional<termios> terminal_before_;
  std::function<void()> quit_;
  Input input_;
  std::deque<std::byte> typed_;  // read, and not yet taken by the guest
  base::EventLoop::Watch wake_watch_, listener_watch_, input_watch_;
  base::EventLoop::Timer retry_;  // puts out what came since, or what nobody took
  std::mutex mutex_;              // for the backlog and out_
  std::deque<std::byte> backlog_;
  bool woken_ = false;  // the loop will look: by the eventfd or by the timer
};

}  // namespace millrace::vmm

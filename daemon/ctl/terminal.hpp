// Terminal: the alternate screen, keys without a line break, and both put back at the end, whatever
// the end is (SIGINT, SIGTERM, an exception of none). One at a time.
#pragma once

#include <string>
#include <vector>

namespace millrace::ctl {

// True when `fd` is a terminal on which colours are wanted (NO_COLOR is not set).
[[nodiscard]] bool wants_colour(int fd);

struct TerminalSize {
  std::size_t width = 80, height = 24;
};
// The size of the terminal at `fd`; 80 x 24 where it is none.
[[nodiscard]] TerminalSize terminal_size(int fd);

class Terminal {
 public:
  Terminal();   // takes the screen over, where standard output is a terminal
  ~Terminal();  // gives it back
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // Draws over what is there, line by line: home, text, erase to the end; nothing is cleared first,
  // so nothing flickers.
  void draw(const std::vector<std::string>& lines);
  // Waits at most `timeout_ms` for a key; 0: none came; 'q' also after SIGINT or SIGTERM.
  [[nodiscard]] char wait_key(int timeout_ms);
};

}  // namespace millrace::ctl

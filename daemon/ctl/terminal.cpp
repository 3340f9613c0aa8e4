#include "daemon/ctl/terminal.hpp"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>

namespace millrace::ctl {

namespace {

// What a signal handler may touch.
volatile std::sig_atomic_t interrupted = 0;
termios saved{};
bool taken = false;

void on_signal(int) {
  interrupted = 1;
}

void write_all(const std::string& text) {
  std::size_t sent = 0;
  while (sent < text.size()) {
    const auto n = ::write(STDOUT_FILENO, text.data() + sent, text.size() - sent);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      interrupted = 1;  // nobody looks any more
      return;
    }
    sent += static_cast<std::size_t>(n);
  }
}

}  // namespace

bool wants_colour(int fd) {
  const char* no_colour = std::getenv("NO_COLOR");
  return ::isatty(fd) != 0 && (no_colour == nullptr || *no_colour == '\0');
}

TerminalSize terminal_size(int fd) {
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return {};
  return {size.ws_col, size.ws_row};
}

Terminal::Terminal() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGHUP, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  if (::isatty(STDOUT_FILENO) == 0) return;
  if (::tcgetattr(STDIN_FILENO, &saved) == 0) {
    auto raw = saved;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    ::tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    taken = true;
  }
  write_all("\x1b[?1049h\x1b[?25l");
}

Terminal::~Terminal() {
  if (::isatty(STDOUT_FILENO) != 0) write_all("\x1b[?25h\x1b[?1049l");
  if (taken) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved);
  taken = false;
}

void Terminal::draw(const std::vector<std::string>& lines) {
  std::string text = "\x1b[H";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    text += lines[i] + "\x1b[K";
    if (i + 1 < lines.size()) text += "\r\n";
  }
  write_all(text + "\x1b[J");
}

char Terminal::wait_key(int timeout_ms) {
  if (interrupted != 0) return 'q';
  pollfd keys{taken ? STDIN_FILENO : -1, POLLIN, 0};
  const int ready = ::poll(&keys, 1, timeout_ms);
  if (interrupted != 0) return 'q';
  if (ready <= 0) return 0;
  char key = 0;
  return ::read(STDIN_FILENO, &key, 1) == 1 ? key : 'q';
}

}  // namespace millrace::ctl

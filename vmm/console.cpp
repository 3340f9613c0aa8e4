#include "vmm/console.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace millrace::vmm {

using base::fail;
using base::fail_errno;
using base::Result;

namespace {

constexpr std::chrono::milliseconds retry_period{10};
// After some output, what comes within this time goes out together: a guest's serial port gives one
// byte at a time, and a call and a reader's wake-up for each of them cost more than the byte.
constexpr std::chrono::milliseconds gather_period{2};
// So much is put out by the vCPU that has it, in case that the loop is busy.
constexpr std::size_t gather_max = 4096;
constexpr std::size_t typed_max = 4096;
constexpr std::string_view socket_prefix{"socket:"};

void signal(const base::Fd& eventfd) {
  constexpr std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(eventfd.get(), &one, sizeof one);
}

bool takes_output(int fd) {
  pollfd poll{fd, POLLOUT, 0};
  return ::poll(&poll, 1, 0) == 1 && (poll.revents & POLLOUT) != 0;
}

}  // namespace

Result<std::unique_ptr<Console>> Console::make(base::EventLoop& loop, const std::string& where,
                                               std::function<void()> quit) {
  std::unique_ptr<Console> console{new Console{loop}};
  if (auto ok = console->open(where, std::move(quit)); !ok) return base::Unexpected{ok.error()};
  return console;
}

std::string Console::socket_path(const std::string& where) {
  return where.starts_with(socket_prefix) ? where.substr(socket_prefix.size()) : std::string{};
}

Result<void> Console::open(const std::string& where, std::function<void()> quit) {
  wake_ = base::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!wake_) return fail_errno("cannot make an eventfd");
  auto watch = loop_.watch(wake_.get(), EPOLLIN, [this](std::uint32_t) { on_wake(); });
  if (!watch) return base::Unexpected{watch.error()};
  wake_watch_ = *std::move(watch);
  if (where == "none") return {};
  if (where == "-") return open_terminal(std::move(quit));
  if (where.starts_with(socket_prefix)) return open_socket(socket_path(where));
  return open_file(where);
}

Result<void> Console::open_terminal(std::function<void()> quit) {
  out_ = STDOUT_FILENO;
  in_ = STDIN_FILENO;
  termios now{};
  if (::tcgetattr(in_, &now) == 0) {
    terminal_before_ = now;
    quit_ = std::move(quit);
    ::cfmakeraw(&now);
    now.c_oflag |= OPOST;
    ::tcsetattr(in_, TCSANOW, &now);
  }
  watch_input();  // a file or nothing at all cannot be watched: then there is no input
  return {};
}

Result<void> Console::open_file(const std::string& path) {
  file_ =
      base::Fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0600)};
  if (!file_) return fail_errno("cannot open the console's file " + path);
  out_ = file_.get();
  return {};
}

Result<void> Console::open_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail("the console's socket path must have 1 to " +
                std::to_string(sizeof address.sun_path - 1) + " characters: " + path);
  }
  path.copy(address.sun_path, path.size());
  listener_ = base::Fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!listener_) return fail_errno("cannot make the console's socket");
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) ::unlink(path.c_str());
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 1) != 0) {
    return fail_errno("cannot listen on the console's socket " + path);
  }
  socket_path_ = path;
  out_is_socket_ = true;
  auto watch = loop_.watch(listener_.get(), EPOLLIN, [this](std::uint32_t) { accept(); });
  if (!watch) return base::Unexpected{watch.error()};
  listener_watch_ = *std::move(watch);
  return {};
}

Console::~Console() {
  {
    const std::lock_guard lock{mutex_};
    flush();
  }
  if (terminal_before_) ::tcsetattr(STDIN_FILENO, TCSANOW, &*terminal_before_);
  if (!socket_path_.empty()) ::unlink(socket_path_.c_str());
}

void Console::accept() {
  base::Fd fresh{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
  if (!fresh) return;
  drop_client();
  client_ = std::move(fresh);
  in_ = client_.get();
  {
    const std::lock_guard lock{mutex_};
    out_ = client_.get();
  }
  watch_input();
  on_wake();
}

void Console::drop_client() {
  input_watch_.reset();
  {
    const std::lock_guard lock{mutex_};
    out_ = -1;
  }
  in_ = -1;
  client_.reset();
}

void Console::watch_input() {
  if (in_ < 0 || input_watch_.active()) return;
  auto watch = loop_.watch(in_, EPOLLIN, [this](std::uint32_t) { on_input(); });
  if (watch) input_watch_ = *std::move(watch);
}

void Console::on_input() {
  std::array<std::byte, 512> bytes;
  const auto got = ::read(in_, bytes.data(), bytes.size());
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    if (out_is_socket_) {
      drop_client();
    } else {
      input_watch_.reset();
      in_ = -1;
    }
    return;
  }
  const auto read = std::span{bytes}.first(static_cast<std::size_t>(got));
  if (quit_ && std::ranges::find(read, quit_key) != read.end()) return quit_();
  typed_.insert(typed_.end(), read.begin(), read.end());
  give_input();
}

void Console::give_input() {
  while (input_ && !typed_.empty()) {
    const std::byte next = typed_.front();
    if (input_({&next, 1}) == 0) break;
    typed_.pop_front();
  }
  if (typed_.size() >= typed_max) {
    input_watch_.reset();  // until there is room
  } else {
    watch_input();
  }
}

void Console::set_input(Input input) {
  input_ = std::move(input);
  give_input();
}

void Console::room() {
  signal(wake_);
}

void Console::transmit(std::byte byte) {
  const std::lock_guard lock{mutex_};
  if (backlog_.size() >= backlog_max) backlog_.pop_front();
  backlog_.push_back(byte);
  if (out_ < 0) return;
  if (backlog_.size() % gather_max == 0 && backlog_.size() < backlog_max) flush();
  if (woken_) return;
  woken_ = true;
  signal(wake_);
}

bool Console::flush() {
  while (!backlog_.empty()) {
    if (out_ < 0) return true;  // kept for the next client
    std::array<std::byte, 2048> bytes;
    const auto size = std::min(bytes.size(), backlog_.size());
    std::copy_n(backlog_.begin(), size, bytes.begin());
    // The terminal is others' too: it is not made non-blocking, but asked first.
    const auto sent = out_is_socket_       ? ::send(out_, bytes.data(), size, MSG_NOSIGNAL)
                      : takes_output(out_) ? ::write(out_, bytes.data(), size)
                                           : -1;
    if (sent <= 0) return false;
    backlog_.erase(backlog_.begin(), backlog_.begin() + sent);
  }
  return true;
}

void Console::on_wake() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto ignored = ::read(wake_.get(), &count, sizeof count);
  give_input();
  put_output();
}

void Console::put_output() {
  const std::lock_guard lock{mutex_};
  const bool had_some = !backlog_.empty() && out_ >= 0;
  const bool done = flush();
  woken_ = had_some || !done;  // until the timer; who transmits needs not wake us meanwhile
  if (woken_) retry_ = loop_.after(done ? gather_period : retry_period, [this] { put_output(); });
}

}  // namespace millrace::vmm

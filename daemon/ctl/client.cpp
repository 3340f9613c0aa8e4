#include "daemon/ctl/client.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace millrace::ctl {

namespace {

using nlohmann::json;

base::Unexpected<Failure> unreachable(std::string line) {
  return base::Unexpected{Failure{Failure::Kind::unreachable, std::move(line)}};
}

}  // namespace

Outcome<Client> Client::connect(const std::string& path, const std::string& who) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return unreachable("socket path too long: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  base::Fd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  if (!socket || ::connect(socket.get(), name, sizeof address) != 0) {
    return unreachable("cannot reach " + who + " at " + path + ": " + std::strerror(errno) +
                       "; is it running?" + (who == "millraced" ? " see --socket" : ""));
  }
  Client client{std::move(socket), who};
  const auto greeting = client.next_message();
  if (!greeting) return base::Unexpected{greeting.error()};
  if (!greeting->contains("QMP")) return unreachable(path + " is not a control socket");
  const auto negotiated = client.execute("qmp_capabilities");
  if (!negotiated) return base::Unexpected{negotiated.error()};
  return client;
}

// The descriptor goes with the first byte.
std::optional<Failure> Client::send(const std::string& text, int fd) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fd)> control{};
  std::size_t sent = 0;
  while (sent < text.size()) {
    iovec part{const_cast<char*>(text.data()) + sent, text.size() - sent};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0 && sent == 0) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      auto* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof fd);
      std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    const auto n = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Failure{Failure::Kind::unreachable, who_ + " hung up"};
    sent += static_cast<std::size_t>(n);
  }
  return std::nullopt;
}

// True: there is something to read, or the peer hung up.
bool Client::wait_until(Deadline deadline) const {
  if (!deadline) return true;
  using std::chrono::milliseconds;
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(*deadline - std::chrono::steady_clock::now());
    struct pollfd one {
      .fd = socket_.get(), .events = POLLIN, .revents = 0
    };
    const auto count = std::clamp<std::int64_t>(left.count(), 0, 1'000'000);
    const int ready = ::poll(&one, 1, static_cast<int>(count));
    if (ready > 0) return true;
    if (ready == 0 && left <= milliseconds{1'000'000}) return false;
    if (ready < 0 && errno != EINTR) return true;
  }
}

Outcome<json> Client::next_message(Deadline deadline) {
  // The program ends every message with a line break and has none inside.
  std::size_t end = input_.find('\n');
  while (end == std::string::npos) {
    if (!wait_until(deadline)) {
      return base::Unexpected{Failure{Failure::Kind::late, who_ + " takes too long"}};
    }
    char bytes[64 * 1024];
    const auto got = ::recv(socket_.get(), bytes, sizeof bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return unreachable(who_ + " hung up");
    const auto before = input_.size();
    input_.append(bytes, static_cast<std::size_t>(got));
    end = input_.find('\n', before);
  }
  json message = json::parse(input_.begin(), input_.begin() + static_cast<std::ptrdiff_t>(end),
                             nullptr, false);
  input_.erase(0, end + 1);
  if (!message.is_object()) return unreachable("this is not a control socket");
  return message;
}

Outcome<json> Client::next_answer() {
  for (;;) {
    auto message = next_message();
    if (!message || !message->contains("event")) return message;
    if (keep_events_) events_.push_back(*std::move(message));
  }
}

Outcome<json> Client::execute(const std::string& command, const json& arguments, int fd) {
  json request{{"execute", command}};
  if (!arguments.empty()) request["arguments"] = arguments;
  // A word that is not UTF-8 cannot be said in JSON: what is said in its place names nothing.
  const auto text = request.dump(-1, ' ', false, json::error_handler_t::replace);
  if (auto failure = send(text + "\n", fd)) return base::Unexpected{*failure};
  auto answer = next_answer();
  if (!answer) return answer;
  if (answer->contains("return")) return json((*answer)["return"]);
  const json error = answer->value("error", json::object());
  return base::Unexpected{Failure{Failure::Kind::refused,
                                  error.value("desc", std::string{"refused without a reason"})}};
}

Outcome<json> Client::raw(const std::string& request) {
  if (auto failure = send(request + "\n")) return base::Unexpected{*failure};
  return next_answer();
}

Outcome<json> Client::next_event(Deadline deadline) {
  if (!events_.empty()) {
    auto event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  for (;;) {
    auto message = next_message(deadline);
    if (!message || message->contains("event")) return message;
  }
}

}  // namespace millrace::ctl

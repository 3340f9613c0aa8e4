#include "daemon/ctl/client.hpp"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

namespace millrace::ctl {

namespace {

using nlohmann::json;

base::Unexpected<Failure> unreachable(std::string line) {
  return base::Unexpected{Failure{Failure::Kind::unreachable, std::move(line)}};
}

}  // namespace

Outcome<Client> Client::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return unreachable("socket path too long: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  base::Fd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  if (!socket || ::connect(socket.get(), name, sizeof address) != 0) {
    return unreachable("cannot reach millraced at " + path + ": " + std::strerror(errno) +
                       "; is it running? see --socket");
  }
  Client client{std::move(socket)};
  const auto greeting = client.next_message();
  if (!greeting) return base::Unexpected{greeting.error()};
  if (!greeting->contains("QMP")) return unreachable(path + " is not a control socket");
  const auto negotiated = client.execute("qmp_capabilities");
  if (!negotiated) return base::Unexpected{negotiated.error()};
  return client;
}

std::optional<Failure> Client::send(const std::string& text) {
  std::size_t sent = 0;
  while (sent < text.size()) {
    const auto n = ::send(socket_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Failure{Failure::Kind::unreachable, "millraced hung up"};
    sent += static_cast<std::size_t>(n);
  }
  return std::nullopt;
}

Outcome<json> Client::next_message() {
  // The daemon ends every message with a line break and has none inside.
  std::size_t end = input_.find('\n');
  while (end == std::string::npos) {
    char bytes[64 * 1024];
    const auto got = ::recv(socket_.get(), bytes, sizeof bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return unreachable("millraced hung up");
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
  }
}

Outcome<json> Client::execute(const std::string& command, const json& arguments) {
  json request{{"execute", command}};
  if (!arguments.empty()) request["arguments"] = arguments;
  if (auto failure = send(request.dump() + "\n")) return base::Unexpected{*failure};
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

Outcome<json> Client::next_event() {
  for (;;) {
    auto message = next_message();
    if (!message || message->contains("event")) return message;
  }
}

}  // namespace millrace::ctl

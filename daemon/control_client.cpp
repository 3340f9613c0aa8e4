#include "daemon/control_client.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>

#include "daemon/version.hpp"

namespace millrace::daemon {

namespace {

using nlohmann::json;

// JSON text of anything: bytes that are not UTF-8 (a path, a process name) are replaced, not
// thrown.
std::string text_of(const json& message) {
  return message.dump(-1, ' ', false, json::error_handler_t::replace) + "\r\n";
}

}  // namespace

ControlClient::ControlClient(base::EventLoop& loop, base::Fd socket, const CommandTable& table,
                             std::function<void(ControlClient&)> gone)
    : loop_{loop}, socket_{std::move(socket)}, table_{table}, gone_{std::move(gone)} {}

void ControlClient::start() {
  watched_ = EPOLLIN;
  auto watch = loop_.watch(socket_.get(), watched_, [this](std::uint32_t events) {
    const auto self = shared_from_this();
    on_events(events);
  });
  if (!watch) return close();
  watch_ = std::move(*watch);
  answer({{"QMP", {{"version", version_object()}, {"capabilities", json::array()}}}});
}

void ControlClient::send_event(const std::string& text) {
  if (ready_) write(text + "\r\n");
}

void ControlClient::close() {
  if (closed_) return;
  closed_ = true;
  watch_.reset();
  socket_.reset();
  loop_.defer([self = shared_from_this()] { self->gone_(*self); });
}

void ControlClient::on_events(std::uint32_t events) {
  if ((events & EPOLLERR) != 0) return close();
  if ((events & EPOLLOUT) != 0) flush();
  if (!closed_ && (events & (EPOLLIN | EPOLLHUP)) != 0) read_some();
  if (!closed_) process();
  // Both directions are gone: nobody will read what is still to be answered.
  if (!closed_ && (events & EPOLLHUP) != 0) close();
}

void ControlClient::read_some() {
  char bytes[16 * 1024];
  while (!closed_ && framer_.buffered() <= JsonFramer::document_max) {
    const auto got = ::recv(socket_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (got > 0) {
      framer_.feed({bytes, static_cast<std::size_t>(got)});
      if (static_cast<std::size_t>(got) < sizeof bytes) return;
    } else if (got == 0) {
      ended_ = true;
      return;
    } else if (errno != EINTR) {
      if (errno != EAGAIN) close();
      return;
    }
  }
}

void ControlClient::process() {
  while (!closed_ && !busy_ && output_.size() < output_pause) {
    const auto document = framer_.next();
    if (!document) break;
    execute(*document);
  }
  if (closed_) return;
  if (framer_.broken() != nullptr) {
    answer_error({"GenericError", std::string{framer_.broken()} + "; the connection is closed"},
                 nullptr);
    return close();
  }
  if (ended_ && !busy_ && output_.empty()) return close();
  update_watch();
}

void ControlClient::execute(const std::string& document) {
  const json request = json::parse(document, nullptr, false);
  if (request.is_discarded()) {
    return answer_error({"GenericError", "this is not JSON; give {\"execute\": COMMAND}"}, nullptr);
  }
  if (!request.is_object()) {
    return answer_error({"GenericError", "a request is an object: {\"execute\": COMMAND}"},
                        nullptr);
  }
  const json id = request.value("id", json{});
  for (const auto& [key, value] : request.items()) {
    if (key == "execute" || key == "arguments" || key == "id") continue;
    return answer_error({"GenericError", "unknown member \"" + key + "\" in the request"}, id);
  }
  const auto name = request.find("execute");
  if (name == request.end() || !name->is_string()) {
    return answer_error({"GenericError", "\"execute\" is missing or not text"}, id);
  }
  const json arguments = request.value("arguments", json::object());
  if (!arguments.is_object()) {
    return answer_error({"GenericError", "\"arguments\" is not an object"}, id);
  }
  run(name->get<std::string>(), arguments, id);
}

void ControlClient::run(const std::string& name, const json& arguments, json id) {
  if (name == "qmp_capabilities" && !ready_) {
    ready_ = true;
    json message{{"return", json::object()}};
    if (!id.is_null()) message["id"] = std::move(id);
    return answer(message);
  }
  if (!ready_) {
    return answer_error({"CommandNotFound", "execute qmp_capabilities first"}, id);
  }
  const auto* handler = table_.find(name);
  if (handler == nullptr) {
    return answer_error(
        {"CommandNotFound", "there is no command \"" + name + "\"; query-commands lists them"}, id);
  }
  busy_ = true;
  // The client may be gone when the answer comes: the reply holds it by a weak pointer.
  (*handler)(arguments, [weak = weak_from_this(), id = std::move(id)](Answer answer) {
    const auto self = weak.lock();
    if (self == nullptr || self->closed_ || !self->busy_) return;
    self->busy_ = false;
    if (!answer) {
      self->answer_error(answer.error(), id);
    } else {
      json message{{"return", *std::move(answer)}};
      if (!id.is_null()) message["id"] = id;
      self->answer(message);
    }
    // Not from here: a handler that answers at once must not nest without end.
    self->loop_.defer([self] {
      if (!self->closed_) self->process();
    });
  });
}

void ControlClient::answer(const json& message) {
  write(text_of(message));
}

void ControlClient::answer_error(const CommandError& error, const json& id) {
  json message{{"error", {{"class", error.error_class}, {"desc", error.line}}}};
  if (!id.is_null()) message["id"] = id;
  answer(message);
}

void ControlClient::write(std::string text) {
  if (closed_) return;
  if (output_.size() + text.size() > output_max) return close();
  output_ += text;
  flush();
}

void ControlClient::flush() {
  std::size_t sent = 0;
  while (sent < output_.size()) {
    const auto n = ::send(socket_.get(), output_.data() + sent, output_.size() - sent,
                          MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) return close();
    if (n <= 0) break;
    sent += static_cast<std::size_t>(n);
  }
  output_.erase(0, sent);
  update_watch();
}

void ControlClient::update_watch() {
  std::uint32_t wanted = output_.empty() ? 0u : static_cast<std::uint32_t>(EPOLLOUT);
  const bool takes_more = !busy_ && !ended_ && output_.size() < output_pause;
  if (takes_more) wanted |= static_cast<std::uint32_t>(EPOLLIN);
  if (wanted == watched_ || !watch_.active()) return;
  watched_ = wanted;
  watch_.modify(wanted);
}

}  // namespace millrace::daemon

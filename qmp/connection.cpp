#include "qmp/connection.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace millrace::qmp {

namespace {

using nlohmann::json;

// JSON text of anything: bytes that are not UTF-8 (a path, a process name) are replaced, not
// thrown.
std::string text_of(const json& message) {
  return message.dump(-1, ' ', false, json::error_handler_t::replace) + "\r\n";
}

}  // namespace

Connection::Connection(base::EventLoop& loop, base::Fd socket, const json& version,
                       const CommandTable& table, std::function<void(Connection&)> gone)
    : loop_{loop},
      socket_{std::move(socket)},
      version_{version},
      table_{table},
      gone_{std::move(gone)} {}

void Connection::start() {
  watched_ = EPOLLIN;
  auto watch = loop_.watch(socket_.get(), watched_, [this](std::uint32_t events) {
    const auto self = shared_from_this();
    on_events(events);
  });
  if (!watch) return close();
  watch_ = std::move(*watch);
  answer({{"QMP", {{"version", version_}, {"capabilities", json::array()}}}});
}

void Connection::send_event(const std::string& text) {
  if (ready_) write(text + "\r\n");
}

void Connection::close() {
  if (closed_) return;
  closed_ = true;
  watch_.reset();
  socket_.reset();
  loop_.defer([self = shared_from_this()] { self->gone_(*self); });
}

void Connection::on_events(std::uint32_t events) {
  if ((events & EPOLLERR) != 0) return close();
  if ((events & EPOLLOUT) != 0) flush();
  if (!closed_ && (events & (EPOLLIN | EPOLLHUP)) != 0) read_some();
  if (!closed_) process();
  // Both directions are gone: nobody will read what is still to be answered.
  if (!closed_ && (events & EPOLLHUP) != 0) close();
}

void Connection::read_some() {
  char bytes[16 * 1024];
  while (!closed_ && framer_.buffered() <= JsonFramer::document_max) {
    const auto got = receive(bytes, sizeof bytes);
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

// Takes bytes as recv(2) does, and the descriptors that came with them where any command wants one.
// Without room for them the kernel closes them.
ssize_t Connection::receive(char* bytes, std::size_t size) {
  if (!table_.takes_descriptors()) return ::recv(socket_.get(), bytes, size, MSG_DONTWAIT);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(descriptors_max * sizeof(int))> control{};
  iovec part{bytes, size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const auto got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return got;
  for (auto* each = CMSG_FIRSTHDR(&message); each != nullptr; each = CMSG_NXTHDR(&message, each)) {
    if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS) continue;
    const auto count = (each->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(each) + i * sizeof number, sizeof number);
      base::Fd fd{number};
      // A socket may be the client's own, which would then never hang up.
      const bool wanted = base::kind_of(fd) != base::FdKind::socket;
      if (wanted && descriptors_.size() < descriptors_max) descriptors_.push_back(std::move(fd));
    }
  }
  return got;
}

base::Fd Connection::take_descriptor() {
  if (descriptors_.empty()) return {};
  auto fd = std::move(descriptors_.front());
  descriptors_.pop_front();
  return fd;
}

void Connection::process() {
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

void Connection::execute(const std::string& document) {
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

void Connection::run(const std::string& name, const json& arguments, json id) {
  if (name == "qmp_capabilities" && !ready_) {
    ready_ = true;
    json message{{"return", json::object()}};
    if (!id.is_null()) message["id"] = std::move(id);
    return answer(message);
  }
  if (!ready_) {
    return answer_error({"CommandNotFound", "execute qmp_capabilities first"}, id);
  }
  const auto* const entry = table_.find(name);
  if (entry == nullptr) {
    return answer_error(
        {"CommandNotFound", "there is no command \"" + name + "\"; query-commands lists them"}, id);
  }
  busy_ = true;
  // The client may be gone when the answer comes: the reply holds it by a weak pointer.
  const Reply reply = [weak = weak_from_this(), id = std::move(id)](Answer answer) {
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
  };
  if (entry->run) return entry->run(arguments, reply);
  entry->run_with_descriptor(arguments, take_descriptor(), reply);
}

void Connection::answer(const json& message) {
  write(text_of(message));
}

void Connection::answer_error(const CommandError& error, const json& id) {
  json message{{"error", {{"class", error.error_class}, {"desc", error.line}}}};
  if (!id.is_null()) message["id"] = id;
  answer(message);
}

void Connection::write(std::string text) {
  if (closed_) return;
  if (output_.size() + text.size() > output_max) return close();
  output_ += text;
  flush();
}

void Connection::flush() {
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

void Connection::update_watch() {
  std::uint32_t wanted = output_.empty() ? 0u : static_cast<std::uint32_t>(EPOLLOUT);
  const bool takes_more = !busy_ && !ended_ && output_.size() < output_pause;
  if (takes_more) wanted |= static_cast<std::uint32_t>(EPOLLIN);
  if (wanted == watched_ || !watch_.active()) return;
  watched_ = wanted;
  watch_.modify(wanted);
}

}  // namespace millrace::qmp

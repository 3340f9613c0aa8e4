#include "guest/console_port.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "base/log.hpp"

namespace millrace::guest {

base::Result<std::unique_ptr<ConsolePort>> ConsolePort::make(base::EventLoop& loop,
                                                             const PortSettings& settings,
                                                             Pipe& out, Pipe& in,
                                                             std::function<void()> turn) {
  auto listener = PortListener::open(settings.socket, settings.permissions);
  if (!listener) return base::Unexpected{listener.error()};
  auto port =
      std::make_unique<ConsolePort>(loop, settings, *std::move(listener), out, in, std::move(turn));
  if (auto ok = port->listen(); !ok) return base::Unexpected{ok.error()};
  return port;
}

ConsolePort::ConsolePort(base::EventLoop& loop, const PortSettings& settings, PortListener listener,
                         Pipe& out, Pipe& in, std::function<void()> turn)
    : loop_{loop},
      settings_{settings},
      listener_{std::move(listener)},
      out_{out},
      in_{in},
      turn_{std::move(turn)} {}

ConsolePort::~ConsolePort() {
  lose();
  in_.flow = Flow::drop;
}

base::Result<void> ConsolePort::listen() {
  auto watch = loop_.watch(listener_.fd(), EPOLLIN, [this](std::uint32_t) {
    if (!connected()) accept();
    turn_();
  });
  if (!watch) return base::Unexpected{watch.error()};
  listen_watch_ = *std::move(watch);
  return {};
}

void ConsolePort::accept() {
  auto client = listener_.accept();
  if (!client) return;
  auto watch = loop_.watch(client.get(), 0, [this](std::uint32_t events) { on_client(events); });
  if (!watch) {
    spdlog::warn("port {}: {}", settings_.name, watch.error().message);
    return;
  }
  client_ = std::move(client);
  client_watch_ = *std::move(watch);
  hung_up_ = false;
  // What the guest says from now on is for this program. A guest's kernel waits for its console in
  // a loop, so a console never holds it up.
  out_.ring.popped(out_.ring.size());
  out_.flow = settings_.terminal ? Flow::shed : Flow::hold;
}

// Said at every look once it happened, whatever is asked for: so the descriptor is not watched any
// more, and read until its end in the turns that come.
void ConsolePort::on_client(std::uint32_t events) {
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    hung_up_ = true;
    client_watch_.reset();
  }
  turn_();
}

bool ConsolePort::turn(bool guest_reads) {
  const bool was = connected();
  bool moved = false;
  if (client_.valid()) moved = send_out();
  // Nobody reads, and whoever spoke is gone.
  if (client_.valid() && hung_up_ && !guest_reads) lose();
  if (client_.valid() && guest_reads) moved = take_in() || moved;
  if (draining_ && (in_.ring.size() == 0 || !guest_reads)) draining_ = false;
  if (client_.valid()) watch_client(guest_reads);
  if (was != connected() || listen_watch_.active()) {
    listen_watch_.modify(connected() ? 0u : unsigned{EPOLLIN});
  }
  return moved || was != connected();
}

bool ConsolePort::send_out() {
  std::size_t sent = 0;
  while (sent < turn_max) {
    const auto piece = out_.ring.pieces()[0];
    if (piece.empty()) break;
    const auto count =
        ::send(client_.get(), piece.data(), piece.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno != EAGAIN) {  // it reads no more; what it wrote may still be there
      out_.flow = Flow::drop;
      out_.ring.popped(out_.ring.size());
      return true;
    }
    if (count <= 0) break;
    out_.ring.popped(static_cast<std::size_t>(count));
    sent += static_cast<std::size_t>(count);
  }
  return sent != 0;
}

bool ConsolePort::take_in() {
  // The worker is still throwing away what was for a program that closed the port.
  if (in_.flow.load() == Flow::drop) {
    if (in_.ring.size() != 0) return true;
    in_.flow = Flow::hold;
  }
  std::size_t taken = 0;
  while (taken < turn_max) {
    const auto piece = in_.ring.free_pieces()[0];
    if (piece.empty()) break;
    const auto count = ::recv(client_.get(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) {
      lose();
      draining_ = in_.ring.size() != 0;
      return true;
    }
    in_.ring.pushed(static_cast<std::size_t>(count));
    taken += static_cast<std::size_t>(count);
  }
  return taken != 0;
}

void ConsolePort::lose() {
  client_watch_.reset();
  client_.reset();
  out_.flow = Flow::drop;
  out_.ring.popped(out_.ring.size());
}

void ConsolePort::watch_client(bool guest_reads) {
  if (!client_watch_.active()) return;
  unsigned events = 0;
  if (guest_reads && in_.flow.load() == Flow::hold && in_.ring.room() != 0) events |= EPOLLIN;
  if (out_.ring.size() != 0) events |= EPOLLOUT;
  client_watch_.modify(events);
}

}  // namespace millrace::guest

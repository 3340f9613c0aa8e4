// Channel: messages over one vhost-user stream socket; a non-blocking framing state machine.
// Thread: control.
//
// One message is taken off the socket at a time: its header, then exactly its payload, so nothing
// is buffered beyond it. Every descriptor that arrives is owned before anything is checked.
// Budgets: the owner's payload limit (asked once the header is there), `fds_max` descriptors a
// message, `message_timeout` for a message to become complete, and one unsent reply: while the peer
// does not read its replies, nothing more is read from it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/check.hpp"
#include "base/event_loop.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"
#include "vhost/wire.hpp"

struct msghdr;

namespace millrace::vhost {

struct Message {
  wire::Header header{};
  std::vector<std::byte> payload;
  std::vector<base::Fd> fds;

  // The start of the payload as a T. The payload must hold it.
  template <class T>
  [[nodiscard]] T as() const {
    CHECK(payload.size() >= sizeof(T));
    T value;
    std::memcpy(&value, payload.data(), sizeof value);
    return value;
  }
};

template <class T>
[[nodiscard]] std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T, 1>{&value, 1});
}

class Channel {
 public:
  // A front-end writes a message in one go; the time is for one that is stopped in the middle. It
  // must be long enough for a debugger's short stop and short enough to free the socket for the
  // next.
  static constexpr std::chrono::seconds message_timeout{10};
  // Messages handled before the other tenants' sockets get their turn.
  static constexpr unsigned messages_per_visit = 32;
  // Bytes that may wait for a peer that does not read: one reply of any kind.
  static constexpr std::size_t unsent_max = 8192;

  // Neither call may destroy the channel.
  class Owner {
   public:
    virtual ~Owner() = default;
    // A header arrived. An error ends the channel before the payload is read.
    virtual base::Result<void> on_header(const wire::Header& header) = 0;
    // A whole message arrived. May call pause(), send() and close().
    virtual void on_message(Message message) = 0;
    // The channel is over: the peer hung up (`why` is empty) or broke the framing. Called once, and
    // not for close().
    virtual void on_closed(const std::string& why) = 0;
  };

  Channel(base::EventLoop& loop, base::Fd socket, Owner& owner, unsigned fds_max,
          std::chrono::milliseconds timeout = message_timeout);
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Starts to read. Fails when the loop cannot watch the socket.
  base::Result<void> open();
  // No message is delivered between pause() and resume(). A hang-up still is.
  void pause();
  void resume();
  // Sends now or when the socket takes it. `fd` may be -1; it is not taken over.
  void send(const wire::Header& header, std::span<const std::byte> payload, int fd = -1);
  // Stops reading and sending. The peer sees nothing of it yet.
  void close();
  // close(), and the peer sees the end.
  void hang_up();
  [[nodiscard]] bool open_for_messages() const { return !closed_; }
  [[nodiscard]] const base::Fd& socket() const { return socket_; }

 private:
  enum class Step { again, wait, over };

  void on_events(std::uint32_t events);
  Step read_some();
  ssize_t receive(std::byte* into, std::size_t size);
  base::Result<void> take_fds(::msghdr& header);
  void deliver();
  bool flush();
  void update_interest();
  void fail(const std::string& why);

  base::EventLoop& loop_;
  base::Fd socket_;
  Owner& owner_;
  const unsigned fds_max_;
  const std::chrono::milliseconds timeout_;
  base::EventLoop::Watch watch_;
  base::EventLoop::Timer incomplete_, unread_;
  Message message_;
  std::size_t have_ = 0;  // bytes of header and payload received
  std::vector<std::byte> unsent_;
  base::Fd unsent_fd_;
  bool paused_ = false, closed_ = false;
};

}  // namespace millrace::vhost
